#include "quant/methods/hadamard.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

uint64_t SplitMix(uint64_t& state) {  // Steele, Lea, Flood 2014
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// q = p^e, or e = 0 when q is no power of a prime.
struct PrimePower {
  int64_t p = 0, e = 0;
};
PrimePower Factor(int64_t q) {
  for (int64_t p = 2; p * p <= q; ++p) {
    if (q % p != 0) continue;
    int64_t e = 0;
    for (; q % p == 0; q /= p) ++e;
    return q == 1 ? PrimePower{p, e} : PrimePower{};
  }
  return q >= 2 ? PrimePower{q, 1} : PrimePower{};
}

// The field of q = p^e elements. Element i is the polynomial whose coefficients are i's digits in
// base p; products are taken modulo a monic polynomial of degree e.
class Field {
 public:
  explicit Field(const PrimePower& power) : p_(power.p), e_(power.e), q_(1) {
    for (int64_t i = 0; i < e_; ++i) q_ *= p_;
    // A modulus is irreducible just when no product of non-zero elements is zero.
    while (e_ > 1 && !IsField()) ++modulus_;
  }
  int64_t q() const { return q_; }
  int64_t Difference(int64_t a, int64_t b) const {
    int64_t sum = 0;
    for (int64_t place = 1; place < q_; place *= p_, a /= p_, b /= p_)
      sum += (a % p_ - b % p_ + p_) % p_ * place;
    return sum;
  }
  int64_t Product(int64_t a, int64_t b) const {
    std::vector<int64_t> digits(2 * e_);
    for (int64_t i = 0, left = a; i < e_; ++i, left /= p_) {
      for (int64_t j = 0, right = b; j < e_; ++j, right /= p_)
        digits[i + j] = (digits[i + j] + (left % p_) * (right % p_)) % p_;
    }
    for (int64_t i = 2 * e_ - 1; i >= e_; --i) {  // x^e = -modulus
      int64_t rest = modulus_;
      for (int64_t j = 0; j < e_; ++j, rest /= p_)
        digits[i - e_ + j] = ((digits[i - e_ + j] - digits[i] * (rest % p_)) % p_ + p_) % p_;
      digits[i] = 0;
    }
    int64_t value = 0;
    for (int64_t i = e_ - 1; i >= 0; --i) value = value * p_ + digits[i];
    return value;
  }
  // The quadratic character: 0 for 0, 1 for squares, -1 for the rest.
  std::vector<int8_t> Character() const {
    std::vector<int8_t> character(q_, -1);
    character[0] = 0;
    for (int64_t a = 1; a < q_; ++a) character[Product(a, a)] = 1;
    return character;
  }

 private:
  bool IsField() const {
    for (int64_t a = p_; a < q_; ++a) {
      for (int64_t b = p_; b < q_; ++b) {
        if (Product(a, b) == 0) return false;
      }
    }
    return true;
  }

  const int64_t p_, e_;
  int64_t q_;
  int64_t modulus_ = 0;  // its lower coefficients, as an element
};

// Paley I: order q + 1, q = 3 mod 4. I + S, S skew with the character's matrix inside.
std::vector<int8_t> PaleyOne(const Field& field) {
  const int64_t q = field.q(), m = q + 1;
  const std::vector<int8_t> character = field.Character();
  std::vector<int8_t> h(m * m);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      int8_t s = 0;
      if (i == 0 && j > 0) s = 1;
      if (j == 0 && i > 0) s = -1;
      if (i > 0 && j > 0) s = character[field.Difference(i - 1, j - 1)];
      h[i * m + j] = static_cast<int8_t>(s + (i == j));
    }
  }
  return h;
}

// Paley II: order 2 (q + 1), q = 1 mod 4. Each entry c of the symmetric conference matrix becomes a
// 2 x 2 block: c [[1, 1], [1, -1]], on the diagonal [[1, -1], [-1, -1]].
std::vector<int8_t> PaleyTwo(const Field& field) {
  const int64_t q = field.q(), m = 2 * (q + 1);
  const std::vector<int8_t> character = field.Character();
  std::vector<int8_t> h(m * m);
  for (int64_t i = 0; i <= q; ++i) {
    for (int64_t j = 0; j <= q; ++j) {
      int8_t c = 1;
      if (i > 0 && j > 0) c = character[field.Difference(i - 1, j - 1)];
      int8_t* block = h.data() + 2 * i * m + 2 * j;
      block[0] = i == j ? 1 : c;
      block[1] = block[m] = i == j ? -1 : c;
      block[m + 1] = static_cast<int8_t>(i == j ? -1 : -c);
    }
  }
  return h;
}

}  // namespace

std::vector<int8_t> PaleyHadamard(int64_t m) {
  if (m == 1) return {1};
  if (m == 2) return {1, 1, 1, -1};
  if (m % 4 != 0) return {};
  const PrimePower one = Factor(m - 1);
  if (one.e > 0 && (m - 1) % 4 == 3) return PaleyOne(Field(one));
  const PrimePower two = Factor(m / 2 - 1);
  if (two.e > 0 && (m / 2 - 1) % 4 == 1) return PaleyTwo(Field(two));
  return {};
}

HadamardRotation::HadamardRotation(int64_t n, int64_t m, std::vector<int8_t> base,
                                   std::vector<float> signs)
    : n_(n), m_(m), base_(std::move(base)), signs_(std::move(signs)) {}

absl::StatusOr<HadamardRotation> HadamardRotation::Create(int64_t n) {
  if (n < 1) return absl::InvalidArgumentError(absl::StrCat("a rotation needs n >= 1: n=", n));
  int64_t m = n;
  while (m % 2 == 0) m /= 2;
  constexpr int64_t kLargestBase = 1024;  // beyond, the dense part would cost more than it saves
  for (; m <= std::min(n, kLargestBase); m *= 2) {
    std::vector<int8_t> base = PaleyHadamard(m);
    if (!base.empty()) return HadamardRotation(n, m, std::move(base), std::vector<float>(n, 1.0f));
  }
  return absl::UnimplementedError(
      absl::StrCat("no Hadamard matrix of this order can be constructed: n=", n));
}

absl::StatusOr<HadamardRotation> HadamardRotation::Create(int64_t n,
                                                          std::span<const int8_t> signs) {
  ASSIGN_OR_RETURN(HadamardRotation rotation, Create(n));
  if (static_cast<int64_t>(signs.size()) != n) {
    return absl::InvalidArgumentError(
        absl::StrCat("a rotation needs a sign per input: signs=", signs.size(), " n=", n));
  }
  for (int64_t i = 0; i < n; ++i) {
    if (signs[i] != 1 && signs[i] != -1) {
      return absl::InvalidArgumentError(
          absl::StrCat("a sign is 1 or -1: sign=", signs[i], " at ", i));
    }
    rotation.signs_[i] = signs[i];
  }
  return rotation;
}

absl::StatusOr<HadamardRotation> HadamardRotation::Create(int64_t n, uint64_t seed) {
  ASSIGN_OR_RETURN(HadamardRotation rotation, Create(n));
  uint64_t state = seed;
  for (float& sign : rotation.signs_) sign = (SplitMix(state) >> 63) != 0 ? -1.0f : 1.0f;
  return rotation;
}

// The base matrix across the m blocks of n / m, then butterflies inside each.
void HadamardRotation::Transform(const float* x, const float* signs, bool transposed,
                                 float* out) const {
  const int64_t size = n_ / m_;
  for (int64_t to = 0; to < m_; ++to) {
    float* y = out + to * size;
    std::fill_n(y, size, 0.0f);
    for (int64_t from = 0; from < m_; ++from) {
      const float h = transposed ? base_[to * m_ + from] : base_[from * m_ + to];
      const float* block = x + from * size;
      if (signs == nullptr) {
        for (int64_t i = 0; i < size; ++i) y[i] += h * block[i];
      } else {
        const float* s = signs + from * size;
        for (int64_t i = 0; i < size; ++i) y[i] += h * (block[i] * s[i]);
      }
    }
  }
  for (int64_t half = 1; half < size; half *= 2) {
    for (int64_t i = 0; i < n_; i += 2 * half) {
      for (int64_t j = i; j < i + half; ++j) {
        const float a = out[j], b = out[j + half];
        out[j] = a + b;
        out[j + half] = a - b;
      }
    }
  }
  const float scale = 1 / std::sqrt(static_cast<float>(n_));
  for (int64_t i = 0; i < n_; ++i) out[i] *= scale;
}

void HadamardRotation::Rotate(const float* x, float* out) const {
  Transform(x, signs_.data(), false, out);
}

void HadamardRotation::RotateBack(const float* x, float* out) const {
  Transform(x, nullptr, true, out);
  for (int64_t i = 0; i < n_; ++i) out[i] *= signs_[i];
}

void HadamardRotation::RotateRows(std::span<float> x) const {
  std::vector<float> row(n_);
  for (float* at = x.data(); at < x.data() + x.size(); at += n_) {
    std::copy_n(at, n_, row.data());
    Rotate(row.data(), at);
  }
}

void HadamardRotation::RotateRowsBack(std::span<float> x) const {
  std::vector<float> row(n_);
  for (float* at = x.data(); at < x.data() + x.size(); at += n_) {
    std::copy_n(at, n_, row.data());
    RotateBack(row.data(), at);
  }
}

void HadamardRotation::RotateOutput(std::span<float> w, int64_t columns) const {
  std::vector<float> column(n_);
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < n_; ++i) column[i] = w[i * columns + j];
    RotateRows(column);
    for (int64_t i = 0; i < n_; ++i) w[i * columns + j] = column[i];
  }
}

}  // namespace assay
