// How far a candidate is from its reference: the statistics of admission and drift. All sums in
// double. Pure functions; a DivergenceMeter belongs to one thread.
//
// Definitions (natural logarithms, nats): KL(p || q) = sum p (log p - log q) over the vocabulary
// with p, q = softmax of the reference's and the candidate's logits; top-1 agreement = share of
// positions with the same arg max; perplexity = exp(mean of -log p(next token)) over all scored
// positions; SQNR = 10 log10(sum y^2 / sum (y - y')^2) in dB; an interval = mean -+ t(0.975, n-1)
// s / sqrt(n) over documents, because positions inside one document are not independent.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace assay {

// Mean of per-document values with its 95 % interval; low = high = mean for fewer than two.
struct Estimate {
  double mean = 0, low = 0, high = 0;
};
Estimate EstimateMean(std::span<const double> values);
// Two-sided 95 % quantile of Student's t. 0 degrees of freedom or fewer: infinity.
double StudentT975(int degrees_of_freedom);
// Linear interpolation between order statistics (numpy's default); 0 for no values. `q` in [0, 1].
double Quantile(std::vector<double> values, double q);

// One position of a language model under both models.
struct PositionScore {
  double kl = 0;
  double nll_reference = 0, nll = 0;  // -log probability of the token that came next
  bool same_top1 = false;
  bool finite = true;  // false: a NaN or infinity among the logits; the other fields are then 0
};
// reference, candidate: logits [vocab]; `next` in [0, vocab).
PositionScore ScorePosition(std::span<const float> reference, std::span<const float> candidate,
                            int32_t next);

// Collects positions document by document.
class DivergenceMeter {
 public:
  struct Summary {
    int tokens = 0, documents = 0;
    int not_finite = 0;  // positions left out
    Estimate mean_kl, top1;
    double kl_p999 = 0, kl_max = 0;
    double perplexity_reference = 0, perplexity = 0, perplexity_ratio = 1;
  };
  void BeginDocument();
  void Add(const PositionScore& score);
  Summary Finish() const;

 private:
  struct Document {
    double kl = 0, top1 = 0;
    int positions = 0;
  };
  std::vector<Document> documents_;
  std::vector<double> kl_;
  double nll_reference_ = 0, nll_ = 0;
  int not_finite_ = 0;
};

// 1 for two zero vectors, 0 for one; NaN when an element is. Sizes are equal.
double Cosine(std::span<const float> a, std::span<const float> b);

// Signal and error power of a layer, summed over blocks.
struct SignalNoise {
  double signal = 0, noise = 0;
  void Add(std::span<const float> reference, std::span<const float> approximation);
  double sqnr_db() const;  // bounded to [-200, 200]: exact equality is 200
};

}  // namespace assay
