// What a candidate is verified on: held-out text, tokenized for one model. Deterministic: the same
// text, tokenizer and model give the same set and hash. Pure.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/model.h"
#include "engine/model/tokenizer.h"

namespace assay {

// How much is measured. Decoders: `documents` windows of up to `window` tokens, each from its own
// part of the text; encoders: `sentences` of up to `sentence_tokens`.
struct EvaluationSize {
  int documents = 8, window = 512;
  int sentences = 96, sentence_tokens = 128;
  int long_documents = 2, long_window = 4096;  // MakeLongContextSet
};

struct EvaluationSet {
  std::string name;                             // for people
  std::string hash;                             // SHA-256 of the token ids
  std::vector<std::vector<int32_t>> documents;  // at least two tokens each for decoders
  int num_tokens() const;
};

// The bundled extract of WikiText-2 (data/evaluation/README.md).
std::string_view BundledEvaluationText();

// `origin` names the text. `tokenizer` may be null: then pseudo-random token ids from a fixed seed,
// and the name says so. InvalidArgument: not UTF-8, or no document is long enough.
absl::StatusOr<EvaluationSet> MakeEvaluationSet(std::string_view text, const std::string& origin,
                                                const Tokenizer* tokenizer, const ModelSpec& spec,
                                                const EvaluationSize& size);

// Windows of a decoder's whole context, up to size.long_window tokens, across the articles of the
// text, shorter where the text has less for so many: what a quantized KV cache does to positions
// that look far back. Empty (no documents): the model has no tokenizer, or the windows of `size`
// are as long already. InvalidArgument: not UTF-8.
absl::StatusOr<EvaluationSet> MakeLongContextSet(std::string_view text, const std::string& origin,
                                                 const Tokenizer* tokenizer, const ModelSpec& spec,
                                                 const EvaluationSize& size);

}  // namespace assay
