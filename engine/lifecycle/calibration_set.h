// What a model is calibrated on: windows of token ids with what a person wants to know about them.
// Deterministic: the same source, tokenizer and model give the same windows and hash. Pure.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/lifecycle/calibration_source.h"
#include "engine/lifecycle/evaluation.h"

namespace assay {

// At most `samples` windows of up to `window` tokens (less where the model's context is shorter).
// Of an encoder's sentences, which are shorter than that, more: up to samples * window / 2 tokens.
struct CalibrationSize {
  int samples = 64, window = 512;
};

// Whether the data looks like what the model will see.
struct CalibrationCoverage {
  // Of the source, in its own documents (articles, lines, rows):
  int documents = 0, chat_documents = 0;
  int too_short = 0;  // left out: fewer than kMinDocumentTokens tokens of text, or 2 given as ids
  int64_t tokens = 0;
  struct LengthBin {
    int64_t up_to = 0;  // documents of more than up_to / 2 and at most up_to tokens
    int documents = 0;
  };
  std::vector<LengthBin> lengths;  // ascending; empty bins left out
  double p10_tokens = 0, median_tokens = 0, p90_tokens = 0, longest_tokens = 0;  // of a document
  // Of the windows that were chosen:
  int samples = 0, chat_samples = 0;
  int64_t sample_tokens = 0;
  double chat_share() const { return samples == 0 ? 0 : double{1} * chat_samples / samples; }
  // Script ("Latin", "Han", ...) -> share of the letters; empty without a tokenizer. A stand-in for
  // the language: it tells Russian from Chinese, but not English from French.
  std::map<std::string, double> scripts;
};
// Lines for a person: documents, lengths, scripts, chat.
std::string ToText(const CalibrationCoverage& coverage);

struct CalibrationSet {
  std::string name;  // for people: the origin, its kind, how many windows
  CalibrationKind kind = CalibrationKind::kText;
  std::string hash;  // SHA-256 of the windows' token ids
  std::vector<TokenDocument> samples;
  CalibrationCoverage coverage;
};

// The bundled extract of WikiText-2 (data/calibration/README.md).
std::string_view BundledCalibrationText();

// Cuts a source into windows and takes `size.samples` of them, spread evenly over all of it. A
// window from the middle of a decoder's document begins with the special tokens that the tokenizer
// puts before a text (BOS), as every request does; an encoder sees documents from their beginning.
// Status codes of ReadCalibrationSource; InvalidArgument: no document is long enough.
absl::StatusOr<CalibrationSet> MakeCalibrationSet(std::string_view bytes, const std::string& origin,
                                                  const Tokenizer* tokenizer, const ModelSpec& spec,
                                                  const CalibrationSize& size);
// Of a file; NotFound. Of the bundled text when `path` is empty; a checkpoint without a tokenizer
// then gets pseudo-random ids, and the name says so.
absl::StatusOr<CalibrationSet> LoadCalibrationSet(const std::string& path,
                                                  const Tokenizer* tokenizer, const ModelSpec& spec,
                                                  const CalibrationSize& size);

// FailedPrecondition when the two share 32 consecutive tokens (a whole document where one of the
// evaluation set is shorter): a model must not be measured on what it was fitted to. The message
// names both places and, given a tokenizer, quotes the text.
absl::Status CheckDisjoint(const CalibrationSet& calibration, const EvaluationSet& evaluation,
                           const Tokenizer* tokenizer = nullptr);

}  // namespace assay
