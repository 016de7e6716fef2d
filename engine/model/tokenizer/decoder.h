// Ids back to text: a chain of stages that tokens' texts run through one by one, so that a stream
// and a whole sequence are decoded by the same code. Semantics of Hugging Face tokenizers'
// decoders, with one deliberate difference: a run of byte tokens that is not valid UTF-8 loses only
// its invalid parts (U+FFFD), not its valid characters.
//
// Thread rule: a Decoder is immutable; a Stream belongs to one caller.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/model/tokenizer/json_fields.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {

class Decoder {
 public:
  // One stage of one stream: what `token` becomes is appended to out. Flush appends what was held
  // back.
  class Stage {
   public:
    virtual ~Stage() = default;
    virtual void Push(std::string_view token, std::string* out) = 0;
    virtual void Flush(std::string* out) { (void)out; }
  };
  using StageFactory = std::function<std::unique_ptr<Stage>()>;

  // From a tokenizer.json's "decoder": an object whose "type" is Sequence, ByteLevel, WordPiece,
  // Metaspace, ByteFallback, Fuse, Replace or Strip. Null puts a blank between tokens.
  // Unimplemented names any other.
  static absl::StatusOr<Decoder> FromJson(const Json& json);

  void AddByteLevel();
  void AddByteFallback();
  void AddWordPiece(std::string_view prefix, bool cleanup);
  absl::Status AddReplace(const Json& pattern, std::string_view content);
  void AddStrip(std::string_view content, size_t start, size_t stop);
  void AddFuse() { fused_ = true; }

  class Stream {
   public:
    explicit Stream(const Decoder& decoder);
    // `literal`: an added token, whose text ByteLevel must not take for bytes.
    std::string Push(std::string_view token, bool literal);
    std::string Flush();

   private:
    void Run(size_t from, std::string text, std::string* out);
    std::vector<std::unique_ptr<Stage>> stages_;
    size_t first_for_literal_;
    Utf8Sink sink_;
  };

 private:
  absl::Status AddJson(const Json& json);
  absl::Status AddMetaspaceJson(const Json& json);
  absl::Status AddStripJson(const Json& json);
  std::vector<StageFactory> stages_;
  size_t first_for_literal_ = 0;  // literal tokens enter behind ByteLevel
  bool fused_ = false;            // later stages see one text, not tokens
};

}  // namespace assay
