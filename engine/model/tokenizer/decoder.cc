#include "engine/model/tokenizer/decoder.h"

#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "engine/model/tokenizer/byte_level.h"
#include "engine/model/tokenizer/normalizer.h"
#include "engine/model/tokenizer/vocabulary.h"

namespace assay {
namespace {

constexpr size_t kLongestToken = size_t{64} << 10;  // of what Replace makes; texts have hundreds

// A stage without memory but for the position of the token.
class PerToken final : public Decoder::Stage {
 public:
  using Function = std::function<std::string(std::string_view token, bool first)>;
  explicit PerToken(Function function) : function_(std::move(function)) {}
  void Push(std::string_view token, std::string* out) override {
    *out += function_(token, first_);
    first_ = false;
  }

 private:
  Function function_;
  bool first_ = true;
};

Decoder::StageFactory MakePerToken(PerToken::Function function) {
  return [function = std::move(function)] { return std::make_unique<PerToken>(function); };
}

// Strip over one fused text: up to `start` copies of `content` at its beginning, up to `stop` at
// its end.
class StripFused final : public Decoder::Stage {
 public:
  StripFused(std::string content, size_t start, size_t stop)
      : content_(std::move(content)), start_(start), stop_(stop) {}

  void Push(std::string_view token, std::string* out) override {
    held_ += token;
    while (start_ > 0 && held_.size() >= content_.size()) {
      if (held_.compare(0, content_.size(), content_) != 0) {
        start_ = 0;
      } else {
        held_.erase(0, content_.size());
        --start_;
      }
    }
    if (start_ > 0) return;
    const size_t keep = std::min(held_.size(), stop_ * content_.size());
    out->append(held_, 0, held_.size() - keep);
    held_.erase(0, held_.size() - keep);
  }

  void Flush(std::string* out) override {
    for (size_t i = 0; i < stop_ && held_.size() >= content_.size(); ++i) {
      const size_t at = held_.size() - content_.size();
      if (held_.compare(at, content_.size(), content_) != 0) break;
      held_.resize(at);
    }
    *out += std::exchange(held_, "");
  }

 private:
  const std::string content_;
  size_t start_;
  const size_t stop_;
  std::string held_;
};

std::string StripToken(std::string_view token, std::string_view content, size_t start,
                       size_t stop) {
  for (size_t i = 0; i < start && token.substr(0, content.size()) == content; ++i) {
    token.remove_prefix(content.size());
  }
  for (size_t i = 0; i < stop && token.size() >= content.size() &&
                     token.substr(token.size() - content.size()) == content;
       ++i) {
    token.remove_suffix(content.size());
  }
  return std::string(token);
}

// Undoes the blanks that splitting at punctuation put in, in this order (transformers'
// clean_up_tokenization).
std::string CleanUp(std::string text) {
  constexpr std::array<std::pair<const char*, const char*>, 11> kRules = {{{" .", "."},
                                                                           {" ?", "?"},
                                                                           {" !", "!"},
                                                                           {" ,", ","},
                                                                           {" ' ", "'"},
                                                                           {" n't", "n't"},
                                                                           {" 'm", "'m"},
                                                                           {" do not", " don't"},
                                                                           {" 's", "'s"},
                                                                           {" 've", "'ve"},
                                                                           {" 're", "'re"}}};
  for (const auto& [from, to] : kRules) absl::StrReplaceAll({{from, to}}, &text);
  return text;
}

}  // namespace

void Decoder::AddByteLevel() {
  stages_.push_back(MakePerToken([](std::string_view token, bool) {
    return DecodeByteLevel(token).value_or(std::string(token));
  }));
  first_for_literal_ = stages_.size();
  fused_ = true;
}

void Decoder::AddByteFallback() {
  stages_.push_back(MakePerToken([](std::string_view token, bool) {
    const std::optional<uint8_t> byte = ParseByteToken(token);
    return byte.has_value() ? std::string(1, static_cast<char>(*byte)) : std::string(token);
  }));
}

void Decoder::AddWordPiece(std::string_view prefix, bool cleanup) {
  stages_.push_back(
      MakePerToken([prefix = std::string(prefix), cleanup](std::string_view token, bool first) {
        std::string text;
        if (first) {
          text = token;
        } else if (token.substr(0, prefix.size()) == prefix) {
          text = token.substr(prefix.size());
        } else {
          text = " " + std::string(token);
        }
        return cleanup ? CleanUp(std::move(text)) : text;
      }));
}

absl::Status Decoder::AddReplace(const Json& pattern, std::string_view content) {
  if (fused_) {
    return absl::UnimplementedError("decoder Replace behind Fuse or ByteLevel is not supported");
  }
  ASSIGN_OR_RETURN(Replacer replacer, MakeReplacer(pattern, content));
  stages_.push_back(MakePerToken([replacer = std::move(replacer)](std::string_view token, bool) {
    // A pattern that gives up on one token, or makes too much of it, leaves it as it is.
    absl::StatusOr<std::string> text = replacer(token);
    return text.ok() && text->size() <= kLongestToken ? *std::move(text) : std::string(token);
  }));
  return absl::OkStatus();
}

void Decoder::AddStrip(std::string_view content, size_t start, size_t stop) {
  if (fused_) {
    stages_.push_back([content = std::string(content), start, stop] {
      return std::make_unique<StripFused>(content, start, stop);
    });
    return;
  }
  stages_.push_back(
      MakePerToken([content = std::string(content), start, stop](std::string_view token, bool) {
        return StripToken(token, content, start, stop);
      }));
}

absl::Status Decoder::AddMetaspaceJson(const Json& json) {
  ASSIGN_OR_RETURN(const std::string mark, RequireString(json, "replacement", "Metaspace"));
  ASSIGN_OR_RETURN(const bool add_prefix, OptionalBool(json, "add_prefix_space", true));
  ASSIGN_OR_RETURN(const std::string scheme,
                   OptionalString(json, "prepend_scheme", add_prefix ? "always" : "never"));
  if (mark.empty()) return absl::InvalidArgumentError("decoder Metaspace.replacement is empty");
  stages_.push_back(
      MakePerToken([mark, never = scheme == "never"](std::string_view token, bool first) {
        return absl::StrReplaceAll(std::string(token), {{mark, first && !never ? "" : " "}});
      }));
  return absl::OkStatus();
}

absl::Status Decoder::AddStripJson(const Json& json) {
  constexpr int64_t kMost = 1 << 20;
  ASSIGN_OR_RETURN(const std::string content, RequireString(json, "content", "Strip"));
  ASSIGN_OR_RETURN(const std::optional<int64_t> given_start, OptionalInt(json, "start"));
  ASSIGN_OR_RETURN(const std::optional<int64_t> given_stop, OptionalInt(json, "stop"));
  const int64_t start = given_start.value_or(0), stop = given_stop.value_or(0);
  if (content.empty() || start < 0 || start > kMost || stop < 0 || stop > kMost) {
    return absl::InvalidArgumentError(
        absl::StrCat("decoder Strip needs content, and start and stop in [0, ", kMost,
                     "]: content=", Printable(content), " start=", start, " stop=", stop));
  }
  AddStrip(content, static_cast<size_t>(start), static_cast<size_t>(stop));
  return absl::OkStatus();
}

absl::Status Decoder::AddJson(const Json& json) {
  ASSIGN_OR_RETURN(const std::string type, RequireString(json, "type", "decoder"));
  if (type == "ByteLevel") {
    AddByteLevel();
  } else if (type == "ByteFallback") {
    AddByteFallback();
  } else if (type == "Fuse") {
    AddFuse();
  } else if (type == "WordPiece") {
    ASSIGN_OR_RETURN(const std::string prefix, OptionalString(json, "prefix", "##"));
    ASSIGN_OR_RETURN(const bool cleanup, OptionalBool(json, "cleanup", true));
    AddWordPiece(prefix, cleanup);
  } else if (type == "Metaspace") {
    return AddMetaspaceJson(json);
  } else if (type == "Replace") {
    ASSIGN_OR_RETURN(const std::string content, RequireString(json, "content", type));
    return AddReplace(Field(json, "pattern"), content);
  } else if (type == "Strip") {
    return AddStripJson(json);
  } else {
    return absl::UnimplementedError(absl::StrCat("decoder ", Printable(type), " is not supported"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Decoder> Decoder::FromJson(const Json& json) {
  Decoder result;
  ASSIGN_OR_RETURN(const auto parts, Components(json, "decoders", "decoder"));
  for (const Json* part : parts) RETURN_IF_ERROR(result.AddJson(*part));
  if (!json.is_null()) return result;
  result.stages_.push_back(MakePerToken(
      [](std::string_view token, bool first) { return (first ? "" : " ") + std::string(token); }));
  return result;
}

Decoder::Stream::Stream(const Decoder& decoder) : first_for_literal_(decoder.first_for_literal_) {
  for (const StageFactory& make : decoder.stages_) stages_.push_back(make());
}

void Decoder::Stream::Run(size_t from, std::string text, std::string* out) {
  for (size_t i = from; i < stages_.size(); ++i) {
    std::string next;
    stages_[i]->Push(text, &next);
    text = std::move(next);
  }
  sink_.Append(text, out);
}

std::string Decoder::Stream::Push(std::string_view token, bool literal) {
  std::string out;
  Run(literal ? first_for_literal_ : 0, std::string(token), &out);
  return out;
}

std::string Decoder::Stream::Flush() {
  std::string out;
  for (size_t i = 0; i < stages_.size(); ++i) {
    std::string held;
    stages_[i]->Flush(&held);
    if (!held.empty()) Run(i + 1, std::move(held), &out);
  }
  sink_.Flush(&out);
  return out;
}

}  // namespace assay
