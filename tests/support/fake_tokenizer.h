// A tokenizer whose vocabulary is given by the test; a token's text is its entry. The stream
// decoder holds back an incomplete UTF-8 character, as real ones do.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "engine/model/tokenizer.h"

namespace assay {

class FakeTokenizer final : public Tokenizer {
 public:
  FakeTokenizer(std::vector<std::string> vocabulary, std::vector<int32_t> end_tokens)
      : vocabulary_(std::move(vocabulary)), end_tokens_(std::move(end_tokens)) {}
  // `size` tokens of one letter each.
  static FakeTokenizer Letters(int size, std::vector<int32_t> end_tokens) {
    std::vector<std::string> vocabulary;
    for (int i = 0; i < size; ++i) vocabulary.emplace_back(1, static_cast<char>('a' + i % 26));
    return FakeTokenizer(std::move(vocabulary), std::move(end_tokens));
  }

  std::string_view kind() const override { return "fake"; }
  int32_t vocab_size() const override { return static_cast<int32_t>(vocabulary_.size()); }
  // Greedy: the longest entry that fits, from the left.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool, bool) const override {
    std::vector<int32_t> ids;
    while (!text.empty()) {
      int32_t best = -1;
      for (int32_t id = 0; id < vocab_size(); ++id) {
        if (vocabulary_[id].empty() || !text.starts_with(vocabulary_[id])) continue;
        if (best < 0 || vocabulary_[id].size() > vocabulary_[best].size()) best = id;
      }
      if (best < 0) return absl::InvalidArgumentError("no token for " + std::string(text));
      ids.push_back(best);
      text.remove_prefix(vocabulary_[best].size());
    }
    return ids;
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool) const override {
    std::string text;
    for (int32_t id : ids) text += vocabulary_[id];
    return text;
  }
  std::string_view TokenText(int32_t id) const override { return vocabulary_[id]; }
  std::optional<int32_t> TokenId(std::string_view token) const override {
    for (int32_t id = 0; id < vocab_size(); ++id)
      if (vocabulary_[id] == token) return id;
    return std::nullopt;
  }
  bool is_special(int32_t id) const override { return vocabulary_[id].empty(); }
  std::span<const int32_t> end_tokens() const override { return end_tokens_; }
  absl::StatusOr<std::string> ApplyChatTemplate(std::span<const ChatMessage>) const override {
    return absl::FailedPreconditionError("a fake has no chat template");
  }
  std::unique_ptr<StreamDecoder> NewStreamDecoder() const override {
    return std::make_unique<Decoder>(*this);
  }

 private:
  class Decoder final : public StreamDecoder {
   public:
    explicit Decoder(const FakeTokenizer& tokenizer) : tokenizer_(tokenizer) {}
    std::string Push(int32_t id) override {
      bytes_ += tokenizer_.vocabulary_[id];
      const size_t whole = WholeCharacters();
      std::string text = bytes_.substr(0, whole);
      bytes_.erase(0, whole);
      return text;
    }
    std::string Flush() override {
      std::string text = bytes_.empty() ? "" : "\xef\xbf\xbd";
      bytes_.clear();
      return text;
    }

   private:
    size_t WholeCharacters() const {
      size_t at = 0;
      while (at < bytes_.size()) {
        const unsigned char lead = static_cast<unsigned char>(bytes_[at]);
        const size_t length = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
        if (at + length > bytes_.size()) break;
        at += length;
      }
      return at;
    }
    const FakeTokenizer& tokenizer_;
    std::string bytes_;
  };

  const std::vector<std::string> vocabulary_;
  const std::vector<int32_t> end_tokens_;
};

}  // namespace assay
