#include "quant/methods/input_statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "quant/methods/matrix_product.h"
#include "quant/schemes/matrix_checks.h"

namespace assay {
namespace {

constexpr int64_t kGrain = 64;  // channels that a thread takes at a time

// SplitMix64 (Steele, Lea, Flood 2014) of a counter: the draw of row `index` depends on nothing
// else.
uint64_t Draw(uint64_t seed, uint64_t index) {
  uint64_t z = seed * 0x2545f4914f6cdd1du + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// One batch, per channel [k].
struct Columns {
  explicit Columns(int64_t k)
      : min(k, std::numeric_limits<float>::infinity()),
        max(k, -std::numeric_limits<float>::infinity()),
        sum(k),
        absolute(k),
        squares(k) {}
  std::vector<float> min, max;
  std::vector<double> sum, absolute, squares;

  // Channels [begin, end) of x [m, k].
  void Add(const float* x, int64_t m, int64_t begin, int64_t end) {
    const auto k = static_cast<int64_t>(min.size());
    for (int64_t row = 0; row < m; ++row) {
      const float* v = x + row * k;
      for (int64_t j = begin; j < end; ++j) {
        min[j] = std::min(min[j], v[j]);
        max[j] = std::max(max[j], v[j]);
        const double value = v[j];
        sum[j] += value;
        absolute[j] += std::fabs(value);
        squares[j] += value * value;
      }
    }
  }
};

// Sums over channels of the central powers of x around `mean`.
struct Powers {
  double second = 0, third = 0, fourth = 0;
};
Powers CentralPowers(const float* x, Shape shape, double mean, ThreadPool* pool) {
  const int64_t m = shape[0], k = shape[1];
  std::vector<Powers> channels(k);
  ParallelRange(pool, k, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = 0; row < m; ++row) {
      for (int64_t j = begin; j < end; ++j) {
        const double d = x[row * k + j] - mean, square = d * d;
        channels[j].second += square;
        channels[j].third += square * d;
        channels[j].fourth += square * square;
      }
    }
  });
  Powers total;
  for (const Powers& channel : channels) {
    total.second += channel.second;
    total.third += channel.third;
    total.fourth += channel.fourth;
  }
  return total;
}

// std, with n - 1, of x - shift, shift = a channel's min + max.
double ShiftedStd(const Columns& columns, int64_t m) {
  double sum = 0, squares = 0;
  const size_t k = columns.min.size();
  const double rows = static_cast<double>(m), count = rows * static_cast<double>(k);
  for (size_t j = 0; j < k; ++j) {
    const double shift = static_cast<double>(columns.min[j]) + columns.max[j];
    sum += columns.sum[j] - rows * shift;
    squares += columns.squares[j] - 2 * shift * columns.sum[j] + rows * shift * shift;
  }
  if (count < 2) return 0;
  return std::sqrt(std::max(0.0, (squares - sum * sum / count) / (count - 1)));
}

absl::Status CheckBatch(std::string_view name, TensorView x, int64_t k) {
  if (x.dtype != DType::kF32 || x.shape.rank != 2 || x.shape[1] != k) {
    return absl::InvalidArgumentError(
        absl::StrCat("statistics of a linear's input need ", std::string(name), " f32[m,", k,
                     "]: ", std::string(Name(x.dtype)), ToString(x.shape)));
  }
  const int64_t bad = FirstNonFinite({x.as<float>(), static_cast<size_t>(x.shape.elements())});
  if (bad < 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("statistics of a linear's input need finite values: ", std::string(name),
                   " row=", bad / k, " column=", bad % k, " value=", x.as<float>()[bad]));
}

void AddTo(std::vector<float>& sum, const std::vector<float>& other) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
}
void AddTo(std::vector<double>& sum, const std::vector<double>& other) {
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += other[i];
}

}  // namespace

void InputStatistics::Moments::Merge(const Moments& b) {
  if (b.count == 0) return;
  const double n = count + b.count, d = b.mean - mean, dn = d / n;
  const double ab = count * b.count;
  m4 += b.m4 + dn * dn * dn * d * ab * (count * count - ab + b.count * b.count) +
        6 * dn * dn * (count * count * b.m2 + b.count * b.count * m2) +
        4 * dn * (count * b.m3 - b.count * m3);
  m3 += b.m3 + dn * dn * d * ab * (count - b.count) + 3 * dn * (count * b.m2 - b.count * m2);
  m2 += b.m2 + d * dn * ab;
  mean += dn * b.count;
  count = n;
}

InputStatistics::InputStatistics(int64_t k, const InputStatisticsOptions& options)
    : k_(k),
      options_(options),
      absmax_(k),
      min_(k, std::numeric_limits<float>::infinity()),
      max_(k, -std::numeric_limits<float>::infinity()),
      sum_absolute_(k),
      sum_squares_(k) {
  options_.hessian = options.hessian || options.cross;
  if (options_.hessian) products_.resize(k * k);
  if (options_.cross) cross_.resize(k * k);
}

absl::StatusOr<InputStatistics> InputStatistics::Create(int64_t k,
                                                        const InputStatisticsOptions& options) {
  if (k < 1 || options.sample_rows < 0 || !(options.moving_average > 0) ||
      options.moving_average > 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "statistics need k >= 1, sample_rows >= 0, moving_average in (0, 1]: k=", k,
        " sample_rows=", options.sample_rows, " moving_average=", options.moving_average));
  }
  return InputStatistics(k, options);
}

absl::Status InputStatistics::Check(TensorView x, TensorView x_full) const {
  RETURN_IF_ERROR(CheckBatch("x", x, k_));
  if (x_full.empty() != !options_.cross) {
    return absl::InvalidArgumentError(options_.cross
                                          ? "statistics with the cross term need x_full beside x"
                                          : "statistics without the cross term take no x_full");
  }
  if (x_full.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(CheckBatch("x_full", x_full, k_));
  if (x_full.shape == x.shape) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "x and x_full differ in shape: ", ToString(x.shape), " ", ToString(x_full.shape)));
}

absl::Status InputStatistics::Update(TensorView x, TensorView x_full, ThreadPool* pool) {
  RETURN_IF_ERROR(Check(x, x_full));
  const int64_t m = x.shape[0];
  if (m == 0) return absl::OkStatus();
  const float* values = x.as<float>();
  UpdateChannels(values, m, pool);
  UpdateProducts(values, x_full.empty() ? nullptr : x_full.as<float>(), m, pool);
  UpdateSamples(values, m);
  tokens_ += m;
  return absl::OkStatus();
}

void InputStatistics::UpdateChannels(const float* x, int64_t m, ThreadPool* pool) {
  Columns batch(k_);
  ParallelRange(pool, k_, kGrain, [&](int64_t begin, int64_t end) { batch.Add(x, m, begin, end); });
  double sum = 0;
  for (int64_t j = 0; j < k_; ++j) {
    min_[j] = std::min(min_[j], batch.min[j]);
    max_[j] = std::max(max_[j], batch.max[j]);
    absmax_[j] = std::max(-min_[j], max_[j]);
    sum += batch.sum[j];
  }
  AddTo(sum_absolute_, batch.absolute);
  AddTo(sum_squares_, batch.squares);
  shifted_std_ = std::max(shifted_std_, ShiftedStd(batch, m));
  const float min = *std::min_element(batch.min.begin(), batch.min.end());
  const float max = *std::max_element(batch.max.begin(), batch.max.end());
  const double weight = tokens_ == 0 ? 1 : options_.moving_average;
  moving_min_ += weight * (min - moving_min_);
  moving_max_ += weight * (max - moving_max_);
  const double count = static_cast<double>(m) * static_cast<double>(k_), mean = sum / count;
  const Powers powers = CentralPowers(x, {m, k_}, mean, pool);
  moments_.Merge({count, mean, powers.second, powers.third, powers.fourth});
  if (!options_.histogram) return;
  const std::span<const float> values(x, static_cast<size_t>(m * k_));
  histogram_.Add({values, min, max});
  absolute_histogram_.Add({values, min, max, true});
}

void InputStatistics::UpdateProducts(const float* x, const float* x_full, int64_t m,
                                     ThreadPool* pool) {
  if (!options_.hessian) return;
  ProductJob<float> job{.m = k_,
                        .n = k_,
                        .p = m,
                        .a = {x, 1, k_},
                        .b = {x, k_, 1},
                        .c = products_.data(),
                        .c_row = k_,
                        .upper_only = true};
  AddProduct(job, pool);
  if (x_full == nullptr) return;
  std::vector<float> difference(static_cast<size_t>(m * k_));
  for (int64_t i = 0; i < m * k_; ++i) difference[i] = x_full[i] - x[i];
  job.a.data = difference.data();
  job.c = cross_.data();
  job.upper_only = false;
  AddProduct(job, pool);
}

// Algorithm R (Vitter 1985).
void InputStatistics::UpdateSamples(const float* x, int64_t m) {
  const int64_t wanted = options_.sample_rows;
  for (int64_t row = 0; row < m && wanted > 0; ++row) {
    const float* values = x + row * k_;
    const int64_t index = tokens_ + row;
    if (index < wanted) {
      samples_.insert(samples_.end(), values, values + k_);
      continue;
    }
    const uint64_t slot =
        Draw(options_.seed, static_cast<uint64_t>(index)) % static_cast<uint64_t>(index + 1);
    if (slot < static_cast<uint64_t>(wanted))
      std::copy_n(values, k_, samples_.begin() + static_cast<int64_t>(slot) * k_);
  }
}

absl::Status InputStatistics::Merge(const InputStatistics& other) {
  const InputStatisticsOptions &a = options_, &b = other.options_;
  if (k_ != other.k_ || a.hessian != b.hessian || a.cross != b.cross ||
      a.histogram != b.histogram || a.sample_rows != b.sample_rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("statistics of different kinds cannot be merged: k=", k_, " and ", other.k_,
                     " hessian=", a.hessian, " and ", b.hessian, " cross=", a.cross, " and ",
                     b.cross, " histogram=", a.histogram, " and ", b.histogram,
                     " sample_rows=", a.sample_rows, " and ", b.sample_rows));
  }
  if (other.tokens_ == 0) return absl::OkStatus();
  for (int64_t j = 0; j < k_; ++j) {
    min_[j] = std::min(min_[j], other.min_[j]);
    max_[j] = std::max(max_[j], other.max_[j]);
    absmax_[j] = std::max(absmax_[j], other.absmax_[j]);
  }
  AddTo(sum_absolute_, other.sum_absolute_);
  AddTo(sum_squares_, other.sum_squares_);
  AddTo(products_, other.products_);
  AddTo(cross_, other.cross_);
  shifted_std_ = std::max(shifted_std_, other.shifted_std_);
  const double weight = tokens_ == 0 ? 1 : options_.moving_average;
  moving_min_ += weight * (other.moving_min_ - moving_min_);
  moving_max_ += weight * (other.moving_max_ - moving_max_);
  moments_.Merge(other.moments_);
  histogram_.Merge(other.histogram_);
  absolute_histogram_.Merge(other.absolute_histogram_);
  // A kept row of ours stands for tokens_ / num_samples rows: a row of theirs takes its slot with
  // the share of their tokens.
  const auto total = static_cast<uint64_t>(tokens_ + other.tokens_);
  for (int64_t row = 0; row < other.num_samples(); ++row) {
    const float* values = other.samples_.data() + row * k_;
    if (num_samples() < options_.sample_rows) {
      samples_.insert(samples_.end(), values, values + k_);
    } else if (Draw(options_.seed, total + static_cast<uint64_t>(row)) % total <
               static_cast<uint64_t>(other.tokens_)) {
      std::copy_n(values, k_, samples_.begin() + row * k_);
    }
  }
  tokens_ += other.tokens_;
  return absl::OkStatus();
}

size_t InputStatistics::bytes() const {
  return (absmax_.size() + min_.size() + max_.size() + products_.size() + cross_.size() +
          samples_.size()) *
             sizeof(float) +
         (sum_absolute_.size() + sum_squares_.size() + histogram_.counts().size() +
          absolute_histogram_.counts().size()) *
             sizeof(double);
}

float InputStatistics::tensor_min() const {
  return tokens_ == 0 ? 0 : *std::min_element(min_.begin(), min_.end());
}
float InputStatistics::tensor_max() const {
  return tokens_ == 0 ? 0 : *std::max_element(max_.begin(), max_.end());
}

double InputStatistics::kurtosis() const {
  return moments_.m2 == 0 ? 0 : moments_.count * moments_.m4 / (moments_.m2 * moments_.m2) - 3;
}

template <typename T>
std::vector<T> InputStatistics::Hessian() const {
  std::vector<T> full(products_.size());
  const double scale = 2.0 / static_cast<double>(std::max<int64_t>(1, tokens_));
  for (int64_t i = 0; i < k_; ++i) {
    for (int64_t j = i; j < k_; ++j) {
      const auto value = static_cast<T>(products_[i * k_ + j] * scale);
      full[i * k_ + j] = full[j * k_ + i] = value;
    }
  }
  return full;
}
template std::vector<float> InputStatistics::Hessian<float>() const;
template std::vector<double> InputStatistics::Hessian<double>() const;

std::vector<double> InputStatistics::Cross() const {
  std::vector<double> cross(cross_.begin(), cross_.end());
  const double scale = 2.0 / static_cast<double>(std::max<int64_t>(1, tokens_));
  for (double& value : cross) value *= scale;
  return cross;
}

}  // namespace assay
