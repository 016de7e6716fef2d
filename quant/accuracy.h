// How far a candidate is from its reference at one position, or in one layer. All sums in double.
// Pure functions. What many positions add up to: quant/divergence.h.
//
// Definitions (natural logarithms, nats): KL(p || q) = sum p (log p - log q) over the vocabulary
// with p, q = softmax of the reference's and the candidate's logits; SQNR =
// 10 log10(sum y^2 / sum (y - y')^2) in dB.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace assay {

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

// 1 for two zero vectors, 0 for one; NaN when an element is. Sizes are equal.
double Cosine(std::span<const float> a, std::span<const float> b);

// Signal and error power of a layer, summed over blocks.
struct SignalNoise {
  double signal = 0, noise = 0;
  void Add(std::span<const float> reference, std::span<const float> approximation);
  double sqnr_db() const;  // bounded to [-200, 200]: exact equality is 200
};

}  // namespace assay
