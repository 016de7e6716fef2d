#include "engine/model/tokenizer/text_tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

constexpr size_t kMaxTextBytes = size_t{1}
                                 << 28;  // offsets of a piece fit 32 bits, also when respelled

class TextTokenizer final : public Tokenizer {
 public:
  explicit TextTokenizer(TokenizerParts parts) : parts_(std::move(parts)) {}

  std::string_view kind() const override { return parts_.model->kind(); }
  int32_t vocab_size() const override { return vocabulary().size(); }

  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool add_special,
                                              bool parse_special) const override {
    if (text.size() > kMaxTextBytes) {
      return absl::InvalidArgumentError(absl::StrCat("text is too long to tokenize: ", text.size(),
                                                     " bytes, at most ", kMaxTextBytes));
    }
    RETURN_IF_ERROR(CheckUtf8(text));
    std::vector<int32_t> ids;
    if (add_special) ids = parts_.before;
    for (const TextOrToken& part : parts_.added.Split(text, parse_special)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      RETURN_IF_ERROR(EncodeText(std::string(text.substr(part.range.begin, part.range.size())),
                                 {.at_start = part.range.begin == 0, .special = parse_special},
                                 &ids));
    }
    if (add_special) ids.insert(ids.end(), parts_.after.begin(), parts_.after.end());
    return ids;
  }

  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids,
                                     bool skip_special) const override {
    Decoder::Stream stream(parts_.decoder);
    std::string out;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (!vocabulary().Contains(ids[i])) {
        return absl::OutOfRangeError(absl::StrCat("token id ", ids[i], " at position ", i,
                                                  " is not in [0, ", vocab_size(), ")"));
      }
      if (skip_special && is_special(ids[i])) continue;
      out += PushToken(ids[i], &stream);
    }
    return out + stream.Flush();
  }

  std::string_view TokenText(int32_t id) const override {
    return vocabulary().Contains(id) ? vocabulary().text(id) : std::string_view();
  }
  std::optional<int32_t> TokenId(std::string_view token) const override {
    return vocabulary().Find(token);
  }
  bool is_special(int32_t id) const override {
    return vocabulary().Contains(id) && vocabulary().kind(id) == TokenKind::kSpecial;
  }
  std::span<const int32_t> end_tokens() const override { return parts_.end_tokens; }

  absl::StatusOr<std::string> ApplyChatTemplate(
      std::span<const ChatMessage> messages) const override {
    return parts_.chat_template.Apply(messages);
  }

  std::unique_ptr<StreamDecoder> NewStreamDecoder() const override {
    return std::make_unique<TextStreamDecoder>(*this);
  }

 private:
  class TextStreamDecoder final : public StreamDecoder {
   public:
    explicit TextStreamDecoder(const TextTokenizer& tokenizer)
        : tokenizer_(tokenizer), stream_(tokenizer.parts_.decoder) {}
    // Ids outside the vocabulary, which Decode refuses, have no text.
    std::string Push(int32_t id) override {
      if (!tokenizer_.vocabulary().Contains(id) || tokenizer_.is_special(id)) return "";
      return tokenizer_.PushToken(id, &stream_);
    }
    std::string Flush() override { return stream_.Flush(); }

   private:
    const TextTokenizer& tokenizer_;
    Decoder::Stream stream_;
  };

  struct FragmentOptions {
    bool at_start;  // of the whole text
    bool special;   // parse special tokens
  };

  const Vocabulary& vocabulary() const { return *parts_.vocabulary; }

  std::string PushToken(int32_t id, Decoder::Stream* stream) const {
    return stream->Push(vocabulary().text(id), vocabulary().kind(id) != TokenKind::kNormal);
  }

  absl::Status EncodeText(std::string text, const FragmentOptions& options,
                          std::vector<int32_t>* ids) const {
    RETURN_IF_ERROR(parts_.normalizer.Run(&text));
    if (text.empty()) return absl::OkStatus();
    if (parts_.normalized_added.empty()) return EncodePlain(std::move(text), options.at_start, ids);
    for (const TextOrToken& part : parts_.normalized_added.Split(text, options.special)) {
      if (part.id >= 0) {
        ids->push_back(part.id);
        continue;
      }
      RETURN_IF_ERROR(EncodePlain(text.substr(part.range.begin, part.range.size()),
                                  options.at_start && part.range.begin == 0, ids));
    }
    return absl::OkStatus();
  }

  absl::Status EncodePlain(std::string text, bool at_start, std::vector<int32_t>* ids) const {
    Pieces pieces;
    pieces.ranges.push_back({0, text.size()});
    pieces.text = std::move(text);
    pieces.at_start = at_start;
    RETURN_IF_ERROR(parts_.pre_tokenizer.Run(&pieces));
    for (const TextRange& range : pieces.ranges) {
      parts_.model->Tokenize(std::string_view(pieces.text).substr(range.begin, range.size()), ids);
    }
    return absl::OkStatus();
  }

  const TokenizerParts parts_;
};

}  // namespace

std::span<const std::string_view> EndTokenTexts() {
  static constexpr std::array<std::string_view, 8> kTexts = {
      "<|im_end|>", "<|eot_id|>",    "<|eom_id|>", "<|end|>",
      "<EOT>",      "<end_of_turn>", "</s>",       "<|endoftext|>"};
  return kTexts;
}

std::vector<int32_t> FindEndTokens(const Vocabulary& vocabulary, std::optional<int32_t> eos) {
  std::vector<int32_t> ids;
  if (eos.has_value()) ids.push_back(*eos);
  for (const std::string_view text : EndTokenTexts()) {
    const std::optional<int32_t> id = vocabulary.Find(text);
    if (id.has_value() && vocabulary.kind(*id) == TokenKind::kSpecial) ids.push_back(*id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

std::unique_ptr<const Tokenizer> MakeTextTokenizer(TokenizerParts parts) {
  return std::make_unique<const TextTokenizer>(std::move(parts));
}

bool HasTokenizer(const nlohmann::json& spec) {
  for (const char* part : {"tokenizer", "metadata"}) {
    const auto it = spec.is_object() ? spec.find(part) : spec.end();
    if (it != spec.end() && it->is_object() && !it->empty()) return true;
  }
  return false;
}

absl::StatusOr<std::unique_ptr<const Tokenizer>> MakeTokenizer(const nlohmann::json& spec) {
  ASSIGN_OR_RETURN(const std::string format, RequireString(spec, "format", "tokenizer"));
  if (format == "huggingface") {
    ASSIGN_OR_RETURN(TokenizerParts parts,
                     PartsFromHuggingFace(Field(spec, "tokenizer"), Field(spec, "config")));
    return MakeTextTokenizer(std::move(parts));
  }
  if (format == "gguf") {
    ASSIGN_OR_RETURN(TokenizerParts parts, PartsFromGguf(Field(spec, "metadata")));
    return MakeTextTokenizer(std::move(parts));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer format must be huggingface or gguf: ", Printable(format)));
}

}  // namespace assay
