// Scores of labelled data, for models that are measured on a task beside the comparison with their
// reference. Pure functions. Percentages where the reference tools print percentages.
//
// All return InvalidArgument, naming the sizes, when there is nothing to score or the two sides do
// not have the same number of items.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace assay {

// Share of equal labels, in [0, 1].
absl::StatusOr<double> Accuracy(std::span<const int32_t> truth, std::span<const int32_t> predicted);

// F1 = 2 tp / (2 tp + fp + fn) in [0, 1], as scikit-learn's f1_score with zero_division=0: macro =
// mean over the labels that occur on either side, micro = over all items at once (which equals
// accuracy when every item has one label).
struct F1Scores {
  double macro = 0, micro = 0;
};
absl::StatusOr<F1Scores> F1(std::span<const int32_t> truth, std::span<const int32_t> predicted);

// One translation or answer with what it is measured against: at least one reference.
struct ScoredText {
  std::string hypothesis;
  std::vector<std::string> references;
};
// Corpus BLEU in [0, 100] as sacrebleu computes by default (Post 2018; signature
// nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp): 4-grams, clipped by the reference that has most
// of each, brevity penalty against the closest length. Texts are UTF-8.
absl::StatusOr<double> Bleu(std::span<const ScoredText> texts);
// Corpus chrF2 in [0, 100], sacrebleu's defaults (Popovic 2015; nc:6|nw:0|space:no|eff:yes):
// character 6-grams, of several references the one that scores best.
absl::StatusOr<double> Chrf(std::span<const ScoredText> texts);

}  // namespace assay
