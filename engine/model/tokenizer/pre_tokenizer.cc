#include "engine/model/tokenizer/pre_tokenizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/byte_level.h"

namespace assay {
namespace {

absl::StatusOr<SplitBehavior> ParseBehavior(const Json& json, std::string_view fallback) {
  ASSIGN_OR_RETURN(const std::string name, OptionalString(json, "behavior", fallback));
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return absl::InvalidArgumentError(
      absl::StrCat("pre_tokenizer behavior must be Removed, Isolated, MergedWithPrevious, "
                   "MergedWithNext or Contiguous: ",
                   Printable(name)));
}

struct MetaspaceOptions {
  std::string replacement;
  PrependScheme scheme;
  bool split;
};

absl::StatusOr<MetaspaceOptions> ParseMetaspace(const Json& json) {
  MetaspaceOptions options;
  ASSIGN_OR_RETURN(options.replacement, RequireString(json, "replacement", "Metaspace"));
  ASSIGN_OR_RETURN(const bool add_prefix_space, OptionalBool(json, "add_prefix_space", true));
  ASSIGN_OR_RETURN(const std::string scheme,
                   OptionalString(json, "prepend_scheme", add_prefix_space ? "always" : "never"));
  ASSIGN_OR_RETURN(options.split, OptionalBool(json, "split", true));
  if (CountCodePoints(options.replacement) != 1) {
    return absl::InvalidArgumentError(absl::StrCat("Metaspace.replacement must be one character: ",
                                                   Printable(options.replacement)));
  }
  if (scheme == "always") {
    options.scheme = PrependScheme::kAlways;
  } else if (scheme == "first") {
    options.scheme = PrependScheme::kFirst;
  } else if (scheme == "never") {
    options.scheme = PrependScheme::kNever;
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "Metaspace prepend_scheme must be always, first or never: ", Printable(scheme)));
  }
  return options;
}

// `rewrite` appends what a piece becomes; the ranges follow.
template <typename Rewrite>
void RewritePieces(Pieces* pieces, const Rewrite& rewrite) {
  std::string text;
  text.reserve(pieces->text.size() + pieces->text.size() / 4);
  for (size_t i = 0; i < pieces->ranges.size(); ++i) {
    TextRange& range = pieces->ranges[i];
    const size_t begin = text.size();
    rewrite(std::string_view(pieces->text).substr(range.begin, range.size()), i, &text);
    range = {begin, text.size()};
  }
  pieces->text = std::move(text);
}

}  // namespace

absl::Status PreTokenizer::AddRegexSplit(std::string_view pattern, Regex::Syntax syntax,
                                         SplitBehavior behavior, bool invert) {
  ASSIGN_OR_RETURN(Regex compiled, Regex::Compile(pattern, syntax));
  auto regex = std::make_shared<const Regex>(std::move(compiled));  // a Step must be copyable
  steps_.push_back([regex, behavior, invert](Pieces* pieces) -> absl::Status {
    Regex::Matcher matcher(*regex);
    std::vector<TextRange> ranges;
    ranges.reserve(pieces->ranges.size());
    for (const TextRange& range : pieces->ranges) {
      const std::string_view text =
          std::string_view(pieces->text).substr(range.begin, range.size());
      ASSIGN_OR_RETURN(std::vector<Segment> segments, FindSegments(matcher, text));
      for (Segment& segment : segments) segment.matched ^= invert;
      AppendSplit(std::move(segments), behavior, range.begin, &ranges);
    }
    pieces->ranges = std::move(ranges);
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

void PreTokenizer::AddCharacterSplit(std::function<bool(CodePoint)> matches,
                                     SplitBehavior behavior) {
  steps_.push_back([matches = std::move(matches), behavior](Pieces* pieces) {
    std::vector<TextRange> ranges;
    ranges.reserve(pieces->ranges.size());
    for (const TextRange& range : pieces->ranges) {
      const std::string_view text =
          std::string_view(pieces->text).substr(range.begin, range.size());
      AppendSplit(FindSegments(matches, text), behavior, range.begin, &ranges);
    }
    pieces->ranges = std::move(ranges);
    return absl::OkStatus();
  });
}

void PreTokenizer::AddPrefixSpace() {
  steps_.push_back([](Pieces* pieces) {
    RewritePieces(pieces, [](std::string_view piece, size_t, std::string* out) {
      if (piece[0] != ' ') *out += ' ';
      *out += piece;
    });
    return absl::OkStatus();
  });
}

void PreTokenizer::AddByteLevel() {
  steps_.push_back([](Pieces* pieces) {
    RewritePieces(pieces, [](std::string_view piece, size_t, std::string* out) {
      AppendByteLevel(piece, out);
    });
    return absl::OkStatus();
  });
}

void PreTokenizer::AddMetaspace(std::string_view replacement, PrependScheme scheme, bool split) {
  steps_.push_back([mark = std::string(replacement), scheme](Pieces* pieces) {
    RewritePieces(pieces, [&](std::string_view piece, size_t index, std::string* out) {
      const bool wanted = scheme == PrependScheme::kAlways ||
                          (scheme == PrependScheme::kFirst && index == 0 && pieces->at_start);
      if (wanted && piece[0] != ' ' && piece.substr(0, mark.size()) != mark) *out += mark;
      for (const char c : piece) {
        if (c == ' ') {
          *out += mark;
        } else {
          *out += c;
        }
      }
    });
    return absl::OkStatus();
  });
  if (!split) return;
  const CodePoint mark = CodePointAt(replacement, 0);
  AddCharacterSplit([mark](CodePoint c) { return c == mark; }, SplitBehavior::kMergedWithNext);
}

absl::Status PreTokenizer::AddByteLevelJson(const Json& json) {
  ASSIGN_OR_RETURN(const bool add_prefix_space, OptionalBool(json, "add_prefix_space", true));
  ASSIGN_OR_RETURN(const bool use_regex, OptionalBool(json, "use_regex", true));
  if (add_prefix_space) AddPrefixSpace();
  if (use_regex) {
    RETURN_IF_ERROR(
        AddRegexSplit(kGpt2Pattern, Regex::Syntax::kPattern, SplitBehavior::kIsolated, false));
  }
  AddByteLevel();
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddSplitJson(const Json& json) {
  ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(json, "Isolated"));
  ASSIGN_OR_RETURN(const bool invert, OptionalBool(json, "invert", false));
  const Json& pattern = Field(json, "pattern");
  const bool literal = Field(pattern, "String").is_string();
  ASSIGN_OR_RETURN(const std::string text,
                   RequireString(pattern, literal ? "String" : "Regex", "Split.pattern"));
  return AddRegexSplit(text, literal ? Regex::Syntax::kLiteral : Regex::Syntax::kPattern, behavior,
                       invert);
}

absl::Status PreTokenizer::AddJson(const Json& json) {
  ASSIGN_OR_RETURN(const std::string type, RequireString(json, "type", "pre_tokenizer"));
  if (type == "ByteLevel") return AddByteLevelJson(json);
  if (type == "Split") return AddSplitJson(json);
  if (type == "Whitespace") {
    return AddRegexSplit(R"(\w+|[^\w\s]+)", Regex::Syntax::kPattern, SplitBehavior::kRemoved, true);
  }
  if (type == "Digits") {
    ASSIGN_OR_RETURN(const bool individual, OptionalBool(json, "individual_digits", false));
    AddCharacterSplit(IsNumeric,
                      individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous);
  } else if (type == "Punctuation") {
    ASSIGN_OR_RETURN(const SplitBehavior behavior, ParseBehavior(json, "Isolated"));
    AddCharacterSplit(IsPunctuation, behavior);
  } else if (type == "WhitespaceSplit" || type == "BertPreTokenizer") {
    AddCharacterSplit(IsWhitespace, SplitBehavior::kRemoved);
    if (type == "BertPreTokenizer") AddCharacterSplit(IsPunctuation, SplitBehavior::kIsolated);
  } else if (type == "Metaspace") {
    ASSIGN_OR_RETURN(const MetaspaceOptions options, ParseMetaspace(json));
    AddMetaspace(options.replacement, options.scheme, options.split);
  } else {
    return absl::UnimplementedError(
        absl::StrCat("pre_tokenizer ", Printable(type), " is not supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const Json& json) {
  PreTokenizer result;
  ASSIGN_OR_RETURN(const auto parts, Components(json, "pretokenizers", "pre_tokenizer"));
  for (const Json* part : parts) RETURN_IF_ERROR(result.AddJson(*part));
  return result;
}

absl::Status PreTokenizer::Run(Pieces* pieces) const {
  for (const Step& step : steps_) RETURN_IF_ERROR(step(pieces));
  return absl::OkStatus();
}

}  // namespace assay
