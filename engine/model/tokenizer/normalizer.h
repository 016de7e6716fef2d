// Rewrites text before it is cut: a chain of steps with the semantics of Hugging Face tokenizers.
// Thread rule: immutable; Run is thread-safe.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/model/tokenizer/json_fields.h"
#include "engine/model/tokenizer/regex.h"

namespace assay {

// The most bytes that a step may make of a text of so many, and a chain of steps of its first one:
// rules come with a checkpoint, and short ones could make gigabytes of a prompt. (The longest
// decomposition of Unicode has 11 bytes for one.)
inline constexpr size_t MostNormalized(size_t bytes) { return 16 * bytes + (size_t{64} << 10); }
absl::Status GrewTooLong(size_t bytes, size_t from);  // ResourceExhausted, with both

// Replaces every match in a text. ResourceExhausted when a regular expression gives up, or as
// above.
using Replacer = std::function<absl::StatusOr<std::string>(std::string_view)>;
// `pattern` is {"String": s} or {"Regex": r}; `content` is literal.
absl::StatusOr<Replacer> MakeReplacer(const Json& pattern, std::string_view content);

struct BertNormalizerOptions {
  bool clean_text = true;            // no control characters, every white space a blank
  bool handle_chinese_chars = true;  // blanks around ideographs
  bool strip_accents = true;
  bool lowercase = true;
};

class Normalizer {
 public:
  using Step = std::function<absl::Status(std::string*)>;

  // From a tokenizer.json's "normalizer": null, or an object whose "type" is Sequence,
  // BertNormalizer, NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Replace, Prepend or
  // Precompiled. Unimplemented names any other.
  static absl::StatusOr<Normalizer> FromJson(const Json& json);

  void AddBert(const BertNormalizerOptions& options);
  void AddPrepend(std::string_view text);  // unless the text is empty
  void AddReplace(Replacer replacer);
  void AddStep(Step step) { steps_.push_back(std::move(step)); }

  bool empty() const { return steps_.empty(); }
  // ResourceExhausted when a regular expression gives up, or the text grows beyond MostNormalized.
  absl::Status Run(std::string* text) const;

 private:
  absl::Status AddJson(const Json& json);
  std::vector<Step> steps_;
};

}  // namespace assay
