// Cuts normalized text into the pieces that the model sees one by one: a chain of steps, each of
// which cuts the pieces of the one before it (and sometimes rewrites the text, as ByteLevel does).
// Semantics are those of Hugging Face tokenizers. Thread rule: immutable; Run is thread-safe.
#pragma once
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/model/tokenizer/json_fields.h"
#include "engine/model/tokenizer/split.h"

namespace assay {

enum class PrependScheme { kAlways, kFirst, kNever };

class PreTokenizer {
 public:
  using Step = std::function<absl::Status(Pieces*)>;

  // From a tokenizer.json's "pre_tokenizer": null, or an object whose "type" is Sequence,
  // ByteLevel, Split, Digits, Punctuation, Whitespace, WhitespaceSplit, BertPreTokenizer or
  // Metaspace. Unimplemented names any other.
  static absl::StatusOr<PreTokenizer> FromJson(const Json& json);

  absl::Status AddRegexSplit(std::string_view pattern, Regex::Syntax syntax, SplitBehavior behavior,
                             bool invert);
  void AddCharacterSplit(std::function<bool(CodePoint)> matches, SplitBehavior behavior);
  void AddPrefixSpace();
  void AddByteLevel();  // only the respelling
  void AddMetaspace(std::string_view replacement, PrependScheme scheme, bool split);

  // ResourceExhausted when a regular expression gives up.
  absl::Status Run(Pieces* pieces) const;

  // The pattern that ByteLevel splits by unless told otherwise.
  static constexpr std::string_view kGpt2Pattern =
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

 private:
  absl::Status AddJson(const Json& json);
  absl::Status AddByteLevelJson(const Json& json);
  absl::Status AddSplitJson(const Json& json);
  std::vector<Step> steps_;
};

}  // namespace assay
