// Hadamard rotations (QuaRot, arXiv:2404.00456; reference/quantization 1.11): y = x W^T is also
// (x Q)(W Q)^T for any orthogonal Q, and Q = D H / sqrt(n), D random signs, spreads outliers over
// all channels.
//
// H of order n = m 2^j is H_m x (Kronecker) the Walsh-Hadamard matrix of order 2^j, m the smallest
// order n / 2^j that Paley's constructions give: q + 1 for a prime power q = 3 mod 4, 2 (q + 1) for
// q = 1 mod 4. That covers all small orders of the published tables but 156 and 172 (whose doubles,
// 312 and 344, it has): 576 = 36 2^4, 1536 = 12 2^7, 11008 = 344 2^5.
//
// Applying takes n (m + log2(n / m)) additions per row. Immutable; thread-safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace assay {

class HadamardRotation {
 public:
  // `seed` draws the signs; no seed = all +1, the plain Hadamard matrix over sqrt(n).
  // InvalidArgument: n < 1; Unimplemented: no Hadamard matrix of this order is known to these
  // constructions.
  static absl::StatusOr<HadamardRotation> Create(int64_t n);
  static absl::StatusOr<HadamardRotation> Create(int64_t n, uint64_t seed);
  // With these signs [n], each 1 or -1; InvalidArgument: another number.
  static absl::StatusOr<HadamardRotation> Create(int64_t n, std::span<const int8_t> signs);

  int64_t n() const { return n_; }
  int64_t base_order() const { return m_; }  // m
  std::span<const float> signs() const { return signs_; }
  // out [n] = x [n] times Q; they do not overlap. Allocates nothing.
  void Rotate(const float* x, float* out) const;
  // out [n] = x [n] times Q^T: undoes it. Likewise.
  void RotateBack(const float* x, float* out) const;
  // Each row of x [rows, n] times Q, in place: for the input of a linear and for its weight [out,
  // n] alike.
  void RotateRows(std::span<float> x) const;
  // Each row times Q^T: undoes RotateRows.
  void RotateRowsBack(std::span<float> x) const;
  // Q^T w for w [n, columns], in place: a linear whose output is to come rotated (y Q).
  void RotateOutput(std::span<float> w, int64_t columns) const;

 private:
  HadamardRotation(int64_t n, int64_t m, std::vector<int8_t> base, std::vector<float> signs);
  // out = x times H / sqrt(n), or its transpose; x's elements times `signs` first, unless null.
  void Transform(const float* x, const float* signs, bool transposed, float* out) const;

  int64_t n_, m_;
  std::vector<int8_t> base_;  // [m, m] of +-1
  std::vector<float> signs_;  // [n]
};

// A Hadamard matrix of order m (+-1, [m, m]) by Sylvester (1, 2) or Paley; empty where neither
// construction gives one.
std::vector<int8_t> PaleyHadamard(int64_t m);

}  // namespace assay
