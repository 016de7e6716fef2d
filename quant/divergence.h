// What the positions of a text say about a candidate: the statistics of admission and drift. All
// sums in double. A DivergenceMeter belongs to one thread.
//
// Two views of the same positions. Summary has intervals over documents (quant/estimate.h) and is
// what a decision looks at. Figures are those that llama.cpp prints after `llama-perplexity
// --kl-divergence` (tools/perplexity/perplexity.cpp, function kl_divergence), with its standard
// errors, which take positions for independent: to compare with published tables. On the same
// logits they agree but for what llama.cpp's file of base logits loses: it keeps log p in 16 bit
// (range / 65535, at most 2.4e-4 nats) and leaves out tokens below log p = -16. llama.cpp scores
// the second half of every window of 512; which positions are scored is up to the caller here.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "quant/accuracy.h"
#include "quant/estimate.h"

namespace assay {

// A mean over positions with its standard error.
struct WithError {
  double value = 0, error = 0;
};

// Fractions of positions whose quantiles llama.cpp prints, in its order.
inline constexpr std::array kKlLevels = {1.0, 0.999, 0.99, 0.95,  0.9, 0.5,
                                         0.1, 0.05,  0.01, 0.001, 0.0};
inline constexpr std::array kDeltaPLevels = {1.0,  0.999, 0.99, 0.95, 0.9,   0.75, 0.5,
                                             0.25, 0.1,   0.05, 0.01, 0.001, 0.0};

struct DivergenceFigures {
  int positions = 0;
  WithError perplexity, perplexity_reference;
  double log_perplexity_correlation = 0;  // of the two, over positions
  WithError log_perplexity_ratio;         // ln(PPL / PPL of the reference)
  WithError perplexity_ratio;             // its exponential
  WithError perplexity_difference;        // PPL - PPL of the reference
  WithError mean_kl;                      // nats
  std::array<double, kKlLevels.size()> kl_quantiles{};
  // Delta p = candidate's probability of the token that came next, less the reference's.
  WithError mean_delta_p, rms_delta_p;
  std::array<double, kDeltaPLevels.size()> delta_p_quantiles{};
  WithError same_top;  // share of positions with the same arg max, binomial error
};
// In llama.cpp's words and order, one figure a line.
std::string ToText(const DivergenceFigures& figures);

class DivergenceMeter {
 public:
  struct Summary {
    int tokens = 0, documents = 0;
    int not_finite = 0;                          // positions left out
    Estimate mean_kl, top1;                      // means of the documents' means; t
    Estimate mean_kl_bootstrap, top1_bootstrap;  // the same, over resampled documents
    // ln of perplexity / reference's, over all positions; documents are resampled whole, so both
    // models see the same ones (paired).
    Estimate log_perplexity_ratio, log_perplexity_ratio_bootstrap;
    Estimate kl_p999;  // of all positions; the interval over resampled documents
    double kl_max = 0;
    double perplexity_reference = 0, perplexity = 0, perplexity_ratio = 1;
  };
  void BeginDocument();
  void Add(const PositionScore& score);
  Summary Finish(const Bootstrap& bootstrap = {}) const;
  // Mean KL alone, with its t interval: cheap, for early decisions.
  Estimate MeanKl() const;
  DivergenceFigures Figures() const;

 private:
  struct Document {
    double kl = 0, top1 = 0, nll_reference = 0, nll = 0;  // sums
    int positions = 0;
  };
  std::vector<Document> documents_;
  std::vector<double> kl_, nll_reference_, nll_;  // by position
  int same_top_ = 0, not_finite_ = 0;
};

}  // namespace assay
