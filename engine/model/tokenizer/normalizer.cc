#include "engine/model/tokenizer/normalizer.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/precompiled_charsmap.h"
#include "engine/model/tokenizer/split.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

template <typename Keep>
void KeepCodePoints(const Keep& keep, std::string* text) {
  std::string out;
  out.reserve(text->size());
  ForEachCodePoint(*text, [&](CodePoint c, size_t begin, size_t end) {
    if (keep(c)) out.append(*text, begin, end - begin);
  });
  *text = std::move(out);
}

void CleanText(std::string* text) {
  std::string out;
  out.reserve(text->size());
  ForEachCodePoint(*text, [&](CodePoint c, size_t begin, size_t end) {
    if (c == '\t' || c == '\n' || c == '\r') {
      out += ' ';
    } else if (c == 0 || c == 0xFFFD || IsControlOrUnassignable(c)) {
      return;
    } else if (IsWhitespace(c)) {
      out += ' ';
    } else {
      out.append(*text, begin, end - begin);
    }
  });
  *text = std::move(out);
}

void PadIdeographs(std::string* text) {
  std::string out;
  out.reserve(text->size());
  ForEachCodePoint(*text, [&](CodePoint c, size_t begin, size_t end) {
    const bool pad = IsCjkIdeograph(c);
    if (pad) out += ' ';
    out.append(*text, begin, end - begin);
    if (pad) out += ' ';
  });
  *text = std::move(out);
}

Normalizer::Step FormStep(NormalForm form) {
  return [form](std::string* text) {
    *text = Normalize(form, *text);
    return absl::OkStatus();
  };
}

absl::Status AddStrip(const Json& json, Normalizer* normalizer) {
  ASSIGN_OR_RETURN(const bool left, OptionalBool(json, "strip_left", true));
  ASSIGN_OR_RETURN(const bool right, OptionalBool(json, "strip_right", true));
  normalizer->AddStep([left, right](std::string* text) {
    *text = std::string(TrimWhitespace(*text, left, right));
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

absl::Status AddPrecompiled(const Json& json, Normalizer* normalizer) {
  ASSIGN_OR_RETURN(const std::string encoded,
                   RequireString(json, "precompiled_charsmap", "Precompiled"));
  std::string bytes;
  if (!absl::Base64Unescape(encoded, &bytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat("Precompiled.precompiled_charsmap is not base64: ", Printable(encoded)));
  }
  if (bytes.empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(PrecompiledCharsmap parsed, PrecompiledCharsmap::Parse(bytes));
  auto map = std::make_shared<const PrecompiledCharsmap>(std::move(parsed));
  normalizer->AddStep([map](std::string* text) -> absl::Status {
    ASSIGN_OR_RETURN(*text, map->NormalizeByGrapheme(*text));
    return absl::OkStatus();
  });
  return absl::OkStatus();
}

absl::Status AddBertJson(const Json& json, Normalizer* normalizer) {
  BertNormalizerOptions options;
  ASSIGN_OR_RETURN(options.clean_text, OptionalBool(json, "clean_text", true));
  ASSIGN_OR_RETURN(options.handle_chinese_chars, OptionalBool(json, "handle_chinese_chars", true));
  ASSIGN_OR_RETURN(options.lowercase, OptionalBool(json, "lowercase", true));
  ASSIGN_OR_RETURN(options.strip_accents, OptionalBool(json, "strip_accents", options.lowercase));
  normalizer->AddBert(options);
  return absl::OkStatus();
}

}  // namespace

void Normalizer::AddBert(const BertNormalizerOptions& options) {
  steps_.push_back([options](std::string* text) {
    if (options.clean_text) CleanText(text);
    if (options.handle_chinese_chars) PadIdeographs(text);
    if (options.strip_accents) {
      *text = Normalize(NormalForm::kNfd, *text);
      KeepCodePoints([](CodePoint c) { return !IsNonspacingMark(c); }, text);
    }
    if (options.lowercase) *text = Lowercase(*text);
    return absl::OkStatus();
  });
}

void Normalizer::AddPrepend(std::string_view prefix) {
  steps_.push_back([prefix = std::string(prefix)](std::string* text) {
    if (!text->empty()) text->insert(0, prefix);
    return absl::OkStatus();
  });
}

void Normalizer::AddReplace(Replacer replacer) {
  steps_.push_back([replacer = std::move(replacer)](std::string* text) -> absl::Status {
    ASSIGN_OR_RETURN(*text, replacer(*text));
    return absl::OkStatus();
  });
}

absl::Status Normalizer::AddJson(const Json& json) {
  ASSIGN_OR_RETURN(const std::string type, RequireString(json, "type", "normalizer"));
  if (type == "BertNormalizer") return AddBertJson(json, this);
  if (type == "Strip") return AddStrip(json, this);
  if (type == "Precompiled") return AddPrecompiled(json, this);
  if (type == "Replace") {
    ASSIGN_OR_RETURN(const std::string content, RequireString(json, "content", type));
    ASSIGN_OR_RETURN(Replacer replacer, MakeReplacer(Field(json, "pattern"), content));
    AddReplace(std::move(replacer));
  } else if (type == "Prepend") {
    ASSIGN_OR_RETURN(const std::string prefix, RequireString(json, "prepend", type));
    AddPrepend(prefix);
  } else if (type == "NFC") {
    AddStep(FormStep(NormalForm::kNfc));
  } else if (type == "NFD") {
    AddStep(FormStep(NormalForm::kNfd));
  } else if (type == "NFKC") {
    AddStep(FormStep(NormalForm::kNfkc));
  } else if (type == "NFKD") {
    AddStep(FormStep(NormalForm::kNfkd));
  } else if (type == "Lowercase") {
    AddStep([](std::string* text) {
      *text = Lowercase(*text);
      return absl::OkStatus();
    });
  } else if (type == "StripAccents") {
    AddStep([](std::string* text) {
      KeepCodePoints([](CodePoint c) { return !IsCombiningMark(c); }, text);
      return absl::OkStatus();
    });
  } else {
    return absl::UnimplementedError(
        absl::StrCat("normalizer ", Printable(type), " is not supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Normalizer> Normalizer::FromJson(const Json& json) {
  Normalizer result;
  ASSIGN_OR_RETURN(const auto parts, Components(json, "normalizers", "normalizer"));
  for (const Json* part : parts) RETURN_IF_ERROR(result.AddJson(*part));
  return result;
}

absl::Status Normalizer::Run(std::string* text) const {
  const size_t from = text->size();
  for (const Step& step : steps_) {
    RETURN_IF_ERROR(step(text));
    if (text->size() > MostNormalized(from)) return GrewTooLong(text->size(), from);
  }
  return absl::OkStatus();
}

absl::Status GrewTooLong(size_t bytes, size_t from) {
  return absl::ResourceExhaustedError(absl::StrCat("the tokenizer's normalizer makes ", bytes,
                                                   " bytes or more of a text of ", from));
}

absl::StatusOr<Replacer> MakeReplacer(const Json& pattern, std::string_view content) {
  const Json& literal = Field(pattern, "String");
  if (literal.is_string()) {
    const std::string text = literal.get<std::string>();
    if (text.empty()) return absl::InvalidArgumentError("Replace.pattern.String is empty");
    return
        [text, content = std::string(content)](std::string_view in) -> absl::StatusOr<std::string> {
          std::string out;
          out.reserve(in.size());
          for (size_t at = 0; at < in.size();) {
            const size_t found = std::min(in.find(text, at), in.size());
            out += in.substr(at, found - at);
            if (found < in.size()) out += content;
            if (out.size() > MostNormalized(in.size())) return GrewTooLong(out.size(), in.size());
            at = found + text.size();
          }
          return out;
        };
  }
  ASSIGN_OR_RETURN(const std::string text, RequireString(pattern, "Regex", "Replace.pattern"));
  ASSIGN_OR_RETURN(Regex compiled, Regex::Compile(text, Regex::Syntax::kPattern));
  auto regex = std::make_shared<const Regex>(std::move(compiled));
  return
      [regex, content = std::string(content)](std::string_view in) -> absl::StatusOr<std::string> {
        Regex::Matcher matcher(*regex);
        ASSIGN_OR_RETURN(const std::vector<Segment> segments, FindSegments(matcher, in));
        std::string out;
        out.reserve(in.size());
        for (const Segment& segment : segments) {
          out += segment.matched ? content : in.substr(segment.range.begin, segment.range.size());
          if (out.size() > MostNormalized(in.size())) return GrewTooLong(out.size(), in.size());
        }
        return out;
      };
}

}  // namespace assay
