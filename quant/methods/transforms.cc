#include "quant/methods/transforms.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "quant/methods/matrix_product.h"
#include "quant/methods/output_error.h"

namespace assay {
namespace {

constexpr double kLeast = 1e-5;  // of a range and of a scale: SmoothQuant's clamp

absl::Status Check(std::string_view method, const SharedInput& group) {
  const std::string name(method);
  if (group.input == nullptr || group.input->tokens() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " needs statistics of the group's input: tokens=0"));
  }
  const int64_t k = group.input->k();
  if (group.weights.empty())
    return absl::InvalidArgumentError(absl::StrCat(name, " needs the consumers: weights=0"));
  for (const TensorView& w : group.weights) {
    if (w.dtype == DType::kF32 && w.shape.rank == 2 && w.shape[1] == k && w.shape[0] >= 1) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        name, " needs weights f32[n,", k, "]: ", std::string(Name(w.dtype)), ToString(w.shape)));
  }
  if (!group.producer_channel.empty() && group.producer_channel.size() != static_cast<size_t>(k)) {
    return absl::InvalidArgumentError(absl::StrCat(
        name, " needs a producer channel per channel: ", group.producer_channel.size(), " k=", k));
  }
  for (const int32_t channel : group.producer_channel) {
    if (channel >= 0 && channel < k) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(name, " has a producer channel outside [0, ", k, "): ", channel));
  }
  return absl::OkStatus();
}

// The largest value among channels that share a producer's channel, for each.
void Share(const SharedInput& group, std::vector<double>& values) {
  if (group.producer_channel.empty()) return;
  std::vector<double> most(values.size());
  for (size_t j = 0; j < values.size(); ++j) {
    double& value = most[group.producer_channel[j]];
    value = std::max(value, values[j]);
  }
  for (size_t j = 0; j < values.size(); ++j) values[j] = most[group.producer_channel[j]];
}

std::vector<double> InputAbsmax(const SharedInput& group) {
  std::vector<double> absmax(group.input->absmax().begin(), group.input->absmax().end());
  for (double& value : absmax) value = std::max(value, kLeast);
  Share(group, absmax);
  return absmax;
}

std::vector<double> WeightAbsmax(const SharedInput& group) {
  const int64_t k = group.input->k();
  std::vector<double> absmax(k, kLeast);
  for (const TensorView& w : group.weights) {
    for (int64_t i = 0; i < w.shape[0]; ++i) {
      for (int64_t j = 0; j < k; ++j)
        absmax[j] = std::max<double>(absmax[j], std::fabs(w.as<float>()[i * k + j]));
    }
  }
  Share(group, absmax);
  return absmax;
}

std::vector<float> Powers(const std::vector<double>& x, const std::vector<double>& w, double alpha,
                          double beta) {
  std::vector<float> scales(x.size());
  for (size_t j = 0; j < x.size(); ++j) {
    scales[j] = static_cast<float>(std::max(std::pow(x[j], alpha) / std::pow(w[j], beta), kLeast));
  }
  return scales;
}

// Rounds row by row to int8, s = absmax / 127: weights, and activations per token.
void FakeQuantizeRows(std::span<float> values, int64_t k) {
  for (size_t begin = 0; begin < values.size(); begin += k) {
    const std::span<float> row = values.subspan(begin, k);
    float absmax = 0;
    for (const float v : row) absmax = std::max(absmax, std::fabs(v));
    if (absmax == 0) continue;
    const float scale = absmax / 127;
    for (float& v : row) v = std::nearbyint(v / scale) * scale;
  }
}

// The whole tensor on one asymmetric int8 grid: s = (max - min) / 255 with 0 in range.
void FakeQuantizeTensor(std::span<float> values) {
  const auto [low_at, high_at] = std::minmax_element(values.begin(), values.end());
  const float low = std::min(0.0f, *low_at), high = std::max(0.0f, *high_at);
  if (low == high) return;
  const float scale = (high - low) / 255;
  const float zero = std::clamp(std::nearbyint(-low / scale), 0.0f, 255.0f);
  for (float& v : values)
    v = (std::clamp(std::nearbyint(v / scale) + zero, 0.0f, 255.0f) - zero) * scale;
}

// Relative error of the output with weights and activations in int8, on the sample rows.
class Int8Objective {
 public:
  Int8Objective(const SharedInput& group, const SmoothSearch& search)
      : group_(group), search_(search), k_(group.input->k()), rows_(group.input->num_samples()) {
    const std::vector<float> x(group.input->samples().begin(), group.input->samples().end());
    for (const TensorView& w : group.weights) {
      const std::vector<float> values(w.as<float>(), w.as<float>() + w.shape.elements());
      reference_.push_back(Product(x, values));
    }
  }

  double operator()(const std::vector<float>& scales) const {
    std::vector<float> x(group_.input->samples().begin(), group_.input->samples().end());
    for (int64_t t = 0; t < rows_; ++t) {
      for (int64_t j = 0; j < k_; ++j) x[t * k_ + j] /= scales[j];
    }
    if (search_.scope == ActivationScope::kToken) {
      FakeQuantizeRows(x, k_);
    } else {
      FakeQuantizeTensor(x);
    }
    double noise = 0, signal = 0;
    for (size_t i = 0; i < group_.weights.size(); ++i) {
      const TensorView& view = group_.weights[i];
      std::vector<float> w(view.as<float>(), view.as<float>() + view.shape.elements());
      ScaleColumns(w, scales);
      FakeQuantizeRows(w, k_);
      const std::vector<float> y = Product(x, w);
      for (size_t e = 0; e < y.size(); ++e) {
        const double difference = static_cast<double>(y[e]) - reference_[i][e];
        noise += difference * difference;
        signal += static_cast<double>(reference_[i][e]) * reference_[i][e];
      }
    }
    return signal > 0 ? std::sqrt(noise / signal) : 0;
  }

 private:
  // x [rows, k] w^T [k, n]
  std::vector<float> Product(const std::vector<float>& x, const std::vector<float>& w) const {
    const int64_t n = static_cast<int64_t>(w.size()) / k_;
    std::vector<float> y(rows_ * n);
    AddProduct(ProductJob<float>{.m = rows_,
                                 .n = n,
                                 .p = k_,
                                 .a = {x.data(), k_, 1},
                                 .b = {w.data(), 1, k_},
                                 .c = y.data(),
                                 .c_row = n},
               search_.pool);
    return y;
  }

  const SharedInput& group_;
  const SmoothSearch& search_;
  const int64_t k_, rows_;
  std::vector<std::vector<float>> reference_;
};

// The value of {0, step, ..., 1} of least error, and the error; the first of equals.
struct Least {
  double at = 0, error = std::numeric_limits<double>::infinity();
};
Least SearchUnit(double step, const std::function<double(double)>& error_of) {
  Least least;
  const auto steps = static_cast<int64_t>(std::lround(1 / step));
  for (int64_t i = 0; i <= steps; ++i) {
    const double value = static_cast<double>(i) * step, error = error_of(value);
    if (error < least.error) least = {value, error};
  }
  return least;
}

absl::Status CheckSearch(std::string_view method, const SharedInput& group,
                         const SmoothSearch& search) {
  RETURN_IF_ERROR(Check(method, group));
  if (group.input->num_samples() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(std::string(method), " needs sample rows of the input: samples=0"));
  }
  if (search.step > 0 && search.step <= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(std::string(method), " steps in (0, 1]: step=", search.step));
}

ScaleChoice Choose(const SharedInput& group, const SmoothSearch& search, bool two_stages) {
  const std::vector<double> x = InputAbsmax(group), w = WeightAbsmax(group);
  const Int8Objective objective(group, search);
  const double plain = objective(std::vector<float>(x.size(), 1.0f));
  const Least alpha = SearchUnit(
      search.step, [&](double value) { return objective(Powers(x, w, value, 1 - value)); });
  Least beta{1 - alpha.at, alpha.error};
  if (two_stages) {
    beta = SearchUnit(search.step,
                      [&](double value) { return objective(Powers(x, w, alpha.at, value)); });
  }
  if (search.allow_plain && beta.error >= plain)
    return {std::vector<float>(x.size(), 1.0f), 0, 0, plain, plain};
  return {Powers(x, w, alpha.at, beta.at), alpha.at, beta.at, beta.error, plain};
}

// Mean over all rows of |w| / (its group's largest): AutoAWQ's w_mean.
std::vector<double> RelativeMagnitude(const SharedInput& group, const QuantScheme& scheme) {
  const int64_t k = group.input->k();
  std::vector<double> mean(k);
  double rows = 0;
  for (const TensorView& w : group.weights) {
    const int64_t size = scheme.group(w.shape);
    for (int64_t i = 0; i < w.shape[0]; ++i) {
      const float* row = w.as<float>() + i * k;
      for (int64_t begin = 0; begin < k; begin += size) {
        const int64_t end = std::min(begin + size, k);
        double most = 0;
        for (int64_t j = begin; j < end; ++j) most = std::max<double>(most, std::fabs(row[j]));
        for (int64_t j = begin; j < end; ++j) mean[j] += std::fabs(row[j]) / (most + 1e-6);
      }
    }
    rows += static_cast<double>(w.shape[0]);
  }
  for (double& value : mean) value /= rows;
  return mean;
}

constexpr int64_t kChunkRows = 128;  // of a weight, rounded side by side

// `out` [n, k]: w minus what its columns times `scales`, rounded to nearest, stand for.
absl::Status AwqDifference(TensorView w, const AwqSearch& search, const std::vector<float>& scales,
                           std::span<float> out) {
  const int64_t n = w.shape[0], k = w.shape[1];
  std::vector<absl::Status> statuses(static_cast<size_t>((n + kChunkRows - 1) / kChunkRows));
  // A scale that spans more rows than that (nvfp4, double quantization) is fitted to the chunk:
  // good enough to compare scales by. Where all rows share one the weight stays whole.
  const int64_t step = search.scheme->group(w.shape) < k ? kChunkRows : n;
  const auto round = [&](int64_t first, int64_t rows) -> absl::Status {
    const std::span<float> chunk = out.subspan(static_cast<size_t>(first * k), rows * k);
    const float* exact = w.as<float>() + first * k;
    std::vector<float> scaled(exact, exact + rows * k);
    ScaleColumns(scaled, scales);
    const TensorView view{reinterpret_cast<const std::byte*>(scaled.data()), Shape{rows, k},
                          DType::kF32, w.device};
    ASSIGN_OR_RETURN(const QuantizedTensor q, search.scheme->Encode(view));
    RETURN_IF_ERROR(search.scheme->DecodeRows(q, 0, rows, chunk));
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < k; ++j)
        chunk[i * k + j] = exact[i * k + j] - chunk[i * k + j] / scales[j];
    }
    return absl::OkStatus();
  };
  ParallelRange(search.pool, (n + step - 1) / step, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      statuses[c] = round(c * step, std::min(step, n - c * step));
  });
  for (const absl::Status& status : statuses) RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

// The output error of all consumers, rounded to nearest with these scales.
absl::StatusOr<double> AwqError(const SharedInput& group, const AwqSearch& search,
                                const OutputError& error, const std::vector<float>& scales) {
  double total = 0;
  for (const TensorView& view : group.weights) {
    std::vector<float> difference(static_cast<size_t>(view.shape.elements()));
    RETURN_IF_ERROR(AwqDifference(view, search, scales, std::span<float>(difference)));
    total += error.Sum(difference, search.pool);
  }
  return total;
}

}  // namespace

absl::StatusOr<std::vector<float>> SmoothQuantScales(const SharedInput& group, double alpha) {
  RETURN_IF_ERROR(Check("smoothquant", group));
  if (!(alpha >= 0 && alpha <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("smoothquant needs alpha in [0, 1]: alpha=", alpha));
  }
  return Powers(InputAbsmax(group), WeightAbsmax(group), alpha, 1 - alpha);
}

absl::StatusOr<ScaleChoice> SearchSmoothQuant(const SharedInput& group,
                                              const SmoothSearch& search) {
  RETURN_IF_ERROR(CheckSearch("smoothquant", group, search));
  return Choose(group, search, false);
}

absl::StatusOr<ScaleChoice> FlexSmooth(const SharedInput& group, const SmoothSearch& search) {
  RETURN_IF_ERROR(CheckSearch("flex_smooth", group, search));
  return Choose(group, search, true);
}

absl::StatusOr<ScaleChoice> AwqScales(const SharedInput& group, const AwqSearch& search) {
  RETURN_IF_ERROR(Check("awq", group));
  if (search.scheme == nullptr || search.grid < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("awq needs a scheme and a grid of at least 1: grid=", search.grid));
  }
  for (const TensorView& w : group.weights) RETURN_IF_ERROR(search.scheme->Accepts(w.shape));
  ASSIGN_OR_RETURN(const OutputError error, OutputError::Create(*group.input));
  const auto tokens = static_cast<double>(group.input->tokens());
  std::vector<double> x = group.input->sum_absolute();
  for (double& value : x) value /= tokens;
  Share(group, x);
  std::vector<double> w = RelativeMagnitude(group, *search.scheme);
  Share(group, w);
  ScaleChoice best{.scales = std::vector<float>(x.size(), 1.0f)};
  ASSIGN_OR_RETURN(best.plain_error, AwqError(group, search, error, best.scales));
  best.error = best.plain_error;
  for (int64_t i = 0; i < search.grid; ++i) {
    const double ratio = static_cast<double>(i) / static_cast<double>(search.grid);
    std::vector<double> s(x.size());
    for (size_t j = 0; j < x.size(); ++j) {
      s[j] = std::pow(x[j], ratio);
      if (search.duo) s[j] /= std::pow(w[j], 1 - ratio) + 1e-4;
      s[j] = std::max(s[j], 1e-4);
    }
    const auto [least, most] = std::minmax_element(s.begin(), s.end());
    const double middle = std::sqrt(*least * *most);
    std::vector<float> scales(s.size());
    for (size_t j = 0; j < s.size(); ++j) scales[j] = static_cast<float>(s[j] / middle);
    ASSIGN_OR_RETURN(const double found, AwqError(group, search, error, scales));
    if (found < best.error) {
      best.error = found;
      best.alpha = ratio;
      best.scales = std::move(scales);
    }
  }
  return best;
}

void ScaleColumns(std::span<float> w, std::span<const float> s) {
  for (size_t i = 0; i < w.size(); i += s.size()) {
    for (size_t j = 0; j < s.size(); ++j) w[i + j] *= s[j];
  }
}

void DivideRows(std::span<float> w, std::span<const float> s) {
  const size_t k = s.empty() ? 0 : w.size() / s.size();
  for (size_t i = 0; i < w.size(); ++i) w[i] /= s[i / k];
}

}  // namespace assay
