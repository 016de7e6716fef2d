// One 8-bit layer against torch.ao's quantize_dynamic, torchao's and bitsandbytes' LLM.int8()
// (tests/golden/methods/make_tools.py).
#include <gtest/gtest.h>

#include "quant/activation.h"
#include "quant/linear.h"
#include "tests/quant/methods/tools_golden.h"

namespace assay {
namespace {

struct Layer {
  std::vector<float> w;  // [n, k]
  ActivationMode mode = ActivationMode::kA8Token;
  std::vector<int32_t> outliers;
  std::string kernel;  // empty: the fastest here
};

QuantizedTensor Quantized(const Layer& layer) {
  const Tensor w = TensorOf({Tools().n, Tools().k}, layer.w);
  QuantizedTensor q = FindScheme("int8_channel").value()->Encode(w.view()).value();
  EXPECT_OK(WriteActivationParams({.outliers = layer.outliers}, layer.mode, q));
  return q;
}

// x [m, k] -> y [m, n]
std::vector<float> Output(const Layer& layer, const std::vector<float>& x) {
  const int64_t k = Tools().k, n = Tools().n, m = static_cast<int64_t>(x.size()) / k;
  const QuantizedLinear linear =
      QuantizedLinear::Create(Quantized(layer), Tensor(),
                              {.activation = layer.mode, .kernel = layer.kernel})
          .value();
  ThreadPool pool({.num_threads = 1});
  Arena arena = *Arena::Create(CpuDevice(), linear.scratch_bytes(m));
  ComputeContext context = {pool, arena};
  const Tensor input = TensorOf({m, k}, x);
  std::vector<float> y(static_cast<size_t>(m * n));
  linear.Forward(input.view(),
                 {reinterpret_cast<std::byte*>(y.data()), {m, n}, DType::kF32, nullptr}, context);
  return y;
}

double Rms(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// The fastest kernel sums integers, the others products in f32: 128 of them, 2^-24 of the largest
// partial sum each at worst and some 1e-6 of it by chance; 1e-5 of the largest output, where 1e-3
// is asked for.
constexpr const char* kKernels[] = {"", "decoded_f32", "reference"};
void ExpectEqual(const std::vector<float>& y, const std::vector<float>& expected) {
  ASSERT_EQ(y.size(), expected.size());
  double largest = 0;
  for (const float v : expected) largest = std::max<double>(largest, std::fabs(v));
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], 1e-5 * largest) << i;
}

std::vector<int8_t> CodesOf(const QuantizedTensor& q) {
  return {q.codes.data<int8_t>(), q.codes.data<int8_t>() + q.codes.bytes()};
}
std::vector<float> ScalesOf(const QuantizedTensor& q) {
  return {q.scales.data<float>(), q.scales.data<float>() + q.scales.shape().elements()};
}

// --- torch.ao dynamic ---

// Codes in [-127, 127], as its configurations for XNNPACK have them: bit for bit. (Its default
// observer uses -128 as well: scales absmax / 127.5.)
TEST(ToolsTorchDynamicTest, WeightCodesAndScalesAreEqual) {
  const nlohmann::json& golden = Tools().json["torch_dynamic"];
  const QuantizedTensor q = Quantized({Tools().weights});
  EXPECT_EQ(CountDifferences(CodesOf(q), FromBase64<int8_t>(golden["codes"])), 0);
  EXPECT_LT(LargestRelative(ScalesOf(q), FromBase64<float>(golden["scales"])), 0x1p-23);
}

// Activations are symmetric per row here, asymmetric per call there (one row a call). Rows that
// both grids hold exactly give the same output.
TEST(ToolsTorchDynamicTest, OutputsAreEqualWhereBothGridsHoldTheInput) {
  const nlohmann::json& golden = Tools().json["torch_dynamic"];
  std::vector<float> x, w = Tools().weights;
  for (const int8_t v : FromBase64<int8_t>(golden["exact_x"])) x.push_back(v / 64.0f);
  for (size_t i = 0; i < w.size(); i += static_cast<size_t>(Tools().k)) w[i] = w[i + 1] = 0;
  const auto expected = FromBase64<float>(golden["exact_y"]);
  for (const char* kernel : kKernels) ExpectEqual(Output({.w = w, .kernel = kernel}, x), expected);
  std::swap(w[2], w[3]);
  EXPECT_GT(Rms(Output({w}, x), expected), 1e-4);
}

// On any row: torchao's dynamic linear, whose activations are symmetric per token as ours.
TEST(ToolsTorchDynamicTest, OutputsEqualTorchaosPerTokenLinear) {
  const nlohmann::json& golden = Tools().json["torchao_dynamic"];
  const auto k = static_cast<size_t>(Tools().k);
  std::vector<float> x = GoldenInput();
  x.resize(32 * k);
  for (size_t row = 0; row < x.size(); row += k) {
    float most = 0;
    for (size_t j = 0; j < k; ++j) most = std::max(most, std::fabs(x[row + j]));
    for (size_t j = 0; j < k; ++j) x[row + j] = 2 * std::fabs(x[row + j]) == most ? 0 : x[row + j];
  }
  EXPECT_EQ(
      CountDifferences(CodesOf(Quantized({Tools().weights})), FromBase64<int8_t>(golden["codes"])),
      0);
  const auto expected = FromBase64<float>(golden["y"]);
  for (const char* kernel : kKernels)
    ExpectEqual(Output({.w = Tools().weights, .kernel = kernel}, x), expected);
  x[7] += 0.5f;
  EXPECT_GT(Rms(Output({Tools().weights}, x), expected), 1e-4);
}

// torch.ao and ours differ on any other row by the rounding of both activations, uniform in steps
// of (max - min) / 255 and absmax / 127: no two 8-bit grids agree to 1e-3 of the output (measured
// here: 1.2 %). The rms of the difference is what those steps say, 10 % allowed for the chance of
// 32 rows, and no more.
TEST(ToolsTorchDynamicTest, OutputsDifferByTheRoundingOfActivations) {
  const int64_t k = Tools().k, rows = 32;
  std::vector<float> x = GoldenInput();
  x.resize(static_cast<size_t>(rows * k));
  const std::vector<float> decoded = Decoded(Quantized({Tools().weights}));
  double power = 0;
  for (const float v : decoded)
    power += static_cast<double>(v) * v / static_cast<double>(Tools().n);
  double expected = 0;
  for (int64_t row = 0; row < rows; ++row) {
    const auto [low, high] = std::minmax_element(x.begin() + row * k, x.begin() + (row + 1) * k);
    const double ours = std::max(-*low, *high) / 127.0, theirs = (*high - *low) / 255.0;
    expected += (ours * ours + theirs * theirs) / 12 * power / static_cast<double>(rows);
  }
  const auto y = FromBase64<float>(Tools().json["torch_dynamic"]["y"]);
  const double difference = Rms(Output({Tools().weights}, x), y);
  EXPECT_LT(difference, 1.1 * std::sqrt(expected));
  EXPECT_GT(difference, 0.5 * std::sqrt(expected));  // not torch's own arithmetic by mistake
  std::vector<float> broken = Tools().weights;
  for (size_t i = 0; i < broken.size(); i += static_cast<size_t>(k))
    std::swap(broken[i], broken[i + 5]);
  EXPECT_GT(Rms(Output({broken}, x), y), 2 * std::sqrt(expected));
}

// --- LLM.int8() ---

std::vector<float> Rows(const char* name) {
  return ToolsGolden::FromF16(Tools().json["bitsandbytes"][name]["x"]);
}
std::vector<float> BitsandbytesOutput(const char* name) {
  return ToolsGolden::FromF16(Tools().json["bitsandbytes"][name]["y"]);
}
std::vector<int32_t> Columns() { return Tools().json["bitsandbytes"]["columns"]; }

// At most one code where w * (127 / absmax), as theirs, and w / (absmax / 127) lie on either side
// of a middle: two roundings of 2^-24 of up to 127 steps, in 8192 weights, are 0.25 expected.
TEST(ToolsBitsandbytesTest, WeightCodesAreEqual) {
  const nlohmann::json& golden = Tools().json["bitsandbytes"];
  const QuantizedTensor q = Quantized({Tools().weights});
  EXPECT_LE(CountDifferences(CodesOf(q), FromBase64<int8_t>(golden["codes"])), 1);
  std::vector<float> absmax = ScalesOf(q);
  for (float& scale : absmax) scale *= 127;
  EXPECT_LT(LargestRelative(absmax, FromBase64<float>(golden["absmax"])), 0x1p-22);
}

// What f16 costs bitsandbytes, per output: the weights of outlier columns (2^-11 each), the int8
// part and the sum (2^-11 each); besides 2e-5 of the int8 part, as its constant for 1 / 127^2 is
// 6.200124e-05, not 6.200012e-05.
std::vector<float> F16Bounds(const std::vector<float>& x) {
  const int64_t k = Tools().k, n = Tools().n, rows = static_cast<int64_t>(x.size()) / k;
  const std::vector<float> w = Decoded(Quantized({Tools().weights}));
  const std::vector<int32_t> columns = Columns();
  std::vector<float> bounds;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < n; ++i) {
      double outside = 0, outliers = 0, magnitude = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double product = static_cast<double>(x[row * k + j]) * w[i * k + j];
        const bool is_outlier = std::find(columns.begin(), columns.end(), j) != columns.end();
        (is_outlier ? outliers : outside) += product;
        if (is_outlier) magnitude += std::fabs(product);
      }
      bounds.push_back(static_cast<float>(
          0x1p-11 * (magnitude + std::fabs(outside) + std::fabs(outside + outliers)) +
          2e-5 * std::fabs(outside)));
    }
  }
  return bounds;
}

// In the outlier columns of these rows every element is an outlier.
TEST(ToolsBitsandbytesTest, OutputEqualsLlmInt8) {
  const std::vector<float> x = Rows("large"), expected = BitsandbytesOutput("large"),
                           bounds = F16Bounds(x);
  const std::vector<float> y =
      Output({Tools().weights, ActivationMode::kInt8Outlier, Columns()}, x);
  ASSERT_EQ(y.size(), expected.size());
  for (size_t i = 0; i < y.size(); ++i) EXPECT_NEAR(y[i], expected[i], bounds[i]) << i;
  // Outliers in int8, or one column of them forgotten, is seen.
  const auto misses = [&](const Layer& layer) {
    const std::vector<float> wrong = Output(layer, x);
    int64_t count = 0;
    for (size_t i = 0; i < wrong.size(); ++i)
      count += std::fabs(wrong[i] - expected[i]) > bounds[i];
    return count;
  };
  std::vector<int32_t> fewer = Columns();
  fewer.pop_back();
  EXPECT_GT(misses({Tools().weights, ActivationMode::kInt8Outlier, fewer}), 100);
  EXPECT_GT(misses({Tools().weights}), 100);
}

// Elements of outlier columns below the threshold still set a row's range in bitsandbytes, though
// their codes are zeroed. Ours excludes the columns, as the paper's decomposition does: a finer
// step, and an output nearer the exact one.
TEST(ToolsBitsandbytesTest, RowRangesExcludeWholeColumns) {
  const std::vector<float> x = Rows("raw"), expected = BitsandbytesOutput("raw");
  const int64_t k = Tools().k;
  const auto absmax = FromBase64<float>(Tools().json["bitsandbytes"]["raw"]["row_absmax"]);
  const ActivationParams params = {.outliers = Columns()};
  std::vector<int16_t> codes(static_cast<size_t>(k));
  int64_t wider = 0;
  for (size_t row = 0; row < absmax.size(); ++row) {
    const float scale = QuantizeRow(ActivationMode::kInt8Outlier, params, {},
                                    std::span(x).subspan(row * k, k), codes);
    EXPECT_LE(scale * 127, absmax[row] * (1 + 0x1p-22f));
    wider += scale * 127 < 0.9f * absmax[row];
  }
  EXPECT_GT(wider, 10);
  const std::vector<float> w = Decoded(Quantized({Tools().weights}));
  std::vector<float> exact;
  for (size_t t = 0; t < x.size(); t += k) {
    for (size_t i = 0; i < w.size(); i += k) {
      double sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(x[t + j]) * w[i + j];
      exact.push_back(static_cast<float>(sum));
    }
  }
  const std::vector<float> y =
      Output({Tools().weights, ActivationMode::kInt8Outlier, Columns()}, x);
  EXPECT_LT(Rms(y, exact), Rms(expected, exact));
}

}  // namespace
}  // namespace assay
