#include "quant/methods/transforms.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/float16.h"
#include "quant/methods/hadamard.h"
#include "quant/methods/hqq.h"
#include "quant/methods/low_rank.h"
#include "tests/quant/methods/methods_golden.h"

namespace assay {
namespace {

using testing::HasSubstr;

InputStatistics WithSamples() {
  return Golden().Statistics({.hessian = true, .sample_rows = Golden().tokens});
}
SharedInput GroupOf(const InputStatistics& input) { return {{Golden().w.view()}, &input, {}}; }

double LargestRelativeDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::fabs(static_cast<double>(a[i]) - b[i]) / std::fabs(b[i]));
  return most;
}

// x [m, k] w [n, k]^T in f64, rounded.
std::vector<double> Output(std::span<const float> x, std::span<const float> w, int64_t k) {
  std::vector<double> y;
  for (size_t t = 0; t < x.size(); t += k) {
    for (size_t row = 0; row < w.size(); row += k) {
      double sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += static_cast<double>(x[t + j]) * w[row + j];
      y.push_back(sum);
    }
  }
  return y;
}
// Largest difference over the largest output.
double Change(const std::vector<double>& y, const std::vector<double>& reference) {
  double most = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    most = std::max(most, std::fabs(y[i] - reference[i]));
    size = std::max(size, std::fabs(reference[i]));
  }
  return most / size;
}
std::vector<float> Values(const Tensor& t) {
  return {t.data<float>(), t.data<float>() + t.shape().elements()};
}

TEST(SmoothQuantTest, EqualsTheReferenceScales) {
  const InputStatistics input = WithSamples();
  ASSERT_OK_AND_ASSIGN(const std::vector<float> half, SmoothQuantScales(GroupOf(input), 0.5));
  EXPECT_LT(LargestRelativeDifference(half, FromBase64<float>(Golden().json["smoothquant"])), 1e-6);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> most, SmoothQuantScales(GroupOf(input), 0.9));
  EXPECT_LT(LargestRelativeDifference(most, FromBase64<float>(Golden().json["iterative_smooth"])),
            1e-6);
  EXPECT_GT(LargestRelativeDifference(most, half), 0.1);
}

TEST(SmoothQuantTest, ChannelsOfOneProducerGetOneScale) {
  const InputStatistics input = WithSamples();
  SharedInput group = GroupOf(input);
  std::vector<int32_t> producer(Golden().k);  // two groups of query heads on one head of values
  for (size_t j = 0; j < producer.size(); ++j) producer[j] = static_cast<int32_t>(j % 64);
  group.producer_channel = producer;
  ASSERT_OK_AND_ASSIGN(const std::vector<float> s, SmoothQuantScales(group, 0.5));
  for (int64_t j = 0; j < 64; ++j) EXPECT_EQ(s[j], s[j + 64]);
}

// What the engine does with scales: the producer's rows divided, the consumer's columns multiplied.
TEST(TransformsTest, FoldingDoesNotChangeTheFunction) {
  const InputStatistics input = WithSamples();
  const int64_t k = Golden().k;
  const Tensor producer = RandomTensor({k, 20}, 1, 0.1f), z = RandomTensor({9, 20}, 2);
  const auto run = [&](std::span<const float> first, std::span<const float> second) {
    const std::vector<double> middle = Output(Values(z), first, 20);
    return Output(std::vector<float>(middle.begin(), middle.end()), second, k);
  };
  std::vector<float> first = Values(producer), second = Values(Golden().w);
  const std::vector<double> reference = run(first, second);
  ASSERT_OK_AND_ASSIGN(const std::vector<float> s, SmoothQuantScales(GroupOf(input), 0.7));
  DivideRows(std::span<float>(first), s);
  EXPECT_GT(Change(run(first, second), reference), 0.1) << "half a fold must show";
  ScaleColumns(std::span<float>(second), s);
  EXPECT_LT(Change(run(first, second), reference), 1e-5);
}

TEST(SmoothSearchTest, IsNotWorseThanAnyFixedAlpha) {
  const InputStatistics input = WithSamples();
  for (const ActivationScope scope : {ActivationScope::kToken, ActivationScope::kTensor}) {
    ASSERT_OK_AND_ASSIGN(const ScaleChoice choice,
                         SearchSmoothQuant(GroupOf(input), {.scope = scope, .step = 0.25}));
    ASSERT_OK_AND_ASSIGN(const ScaleChoice finer,
                         SearchSmoothQuant(GroupOf(input), {.scope = scope}));
    EXPECT_LE(finer.error, choice.error);
    EXPECT_LE(choice.error, choice.plain_error);
  }
}

TEST(FlexSmoothTest, EqualsTheReferenceGrid) {
  const InputStatistics input = WithSamples();
  ASSERT_OK_AND_ASSIGN(
      const ScaleChoice choice,
      FlexSmooth(GroupOf(input), {.scope = ActivationScope::kTensor, .allow_plain = false}));
  const nlohmann::json& expected = Golden().json["flex"];
  // Ties are broken by f32 against f64 products: the error, not the exponents, is compared closely.
  EXPECT_NEAR(choice.error, expected["loss"], 0.02 * expected["loss"].get<double>());
  EXPECT_NEAR(choice.plain_error, expected["plain_loss"],
              0.01 * expected["plain_loss"].get<double>());
  EXPECT_NEAR(choice.alpha, expected["alpha"], 0.051);
  EXPECT_NEAR(choice.beta, expected["beta"], 0.051);
  ASSERT_OK_AND_ASSIGN(
      const ScaleChoice one,
      SearchSmoothQuant(GroupOf(input), {.scope = ActivationScope::kTensor, .allow_plain = false}));
  EXPECT_LE(choice.error, one.error);
  // This layer is better off without smoothing for a static grid, and the search says so.
  ASSERT_OK_AND_ASSIGN(const ScaleChoice guarded,
                       FlexSmooth(GroupOf(input), {.scope = ActivationScope::kTensor}));
  EXPECT_EQ(guarded.error, guarded.plain_error);
  EXPECT_EQ(guarded.scales, std::vector<float>(Golden().k, 1.0f));
}

TEST(FlexSmoothTest, HelpsWhereChannelsAreOutliers) {
  const HardLayer layer(24, 111, 300, 3);
  InputStatistics input = InputStatistics::Create(111, {.sample_rows = 128}).value();
  ASSERT_OK(input.Update(layer.x.view(), nullptr));
  for (const ActivationScope scope : {ActivationScope::kToken, ActivationScope::kTensor}) {
    ASSERT_OK_AND_ASSIGN(const ScaleChoice choice,
                         FlexSmooth({{layer.w.view()}, &input, {}}, {.scope = scope}));
    EXPECT_LT(choice.error, 0.95 * choice.plain_error);
  }
}

TEST(AwqTest, EqualsTheReferenceSearch) {
  const InputStatistics input = WithSamples();
  int64_t compared = 0;
  for (const auto& [name, expected] : Golden().json["awq"].items()) {
    const std::string scheme = name.substr(0, name.find(' '));
    if (!FindScheme(scheme).ok()) continue;
    SCOPED_TRACE(name);
    const bool duo = name != scheme;
    ASSERT_OK_AND_ASSIGN(const ScaleChoice choice,
                         AwqScales(GroupOf(input), {.scheme = *FindScheme(scheme), .duo = duo}));
    EXPECT_DOUBLE_EQ(choice.alpha, expected["ratio"]);
    EXPECT_LT(LargestRelativeDifference(choice.scales, FromBase64<float>(expected["scales"])),
              1e-4);
    // Ours is the sum over outputs, theirs the mean.
    EXPECT_NEAR(choice.error / static_cast<double>(Golden().n), expected["loss"],
                1e-3 * expected["loss"].get<double>());
    EXPECT_LE(choice.error, choice.plain_error);
    ++compared;
  }
  EXPECT_GE(compared, 2);
}

TEST(TransformsTest, RefuseWhatTheyCannotUse) {
  const InputStatistics input = WithSamples(), none = Golden().Statistics({});
  const Tensor other = RandomTensor({4, 64}, 1);
  EXPECT_THAT(SmoothQuantScales({{other.view()}, &input, {}}, 0.5),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("f32[4,64]")));
  EXPECT_THAT(SmoothQuantScales({{}, &input, {}}, 0.5),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("weights=0")));
  EXPECT_THAT(SmoothQuantScales(GroupOf(input), 1.5),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("alpha=1.5")));
  EXPECT_THAT(FlexSmooth(GroupOf(none), {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("samples=0")));
  SharedInput group = GroupOf(input);
  const std::vector<int32_t> outside(Golden().k, 1000);
  group.producer_channel = outside;
  EXPECT_THAT(SmoothQuantScales(group, 0.5),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1000")));
  EXPECT_THAT(AwqScales(GroupOf(input), {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("scheme")));
}

// max |H H^T - m I|
int64_t Defect(const std::vector<int8_t>& h, int64_t m) {
  int64_t defect = 0;
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < m; ++j) {
      int64_t dot = 0;
      for (int64_t l = 0; l < m; ++l) dot += h[i * m + l] * h[j * m + l];
      defect = std::max(defect, std::abs(dot - (i == j ? m : 0)));
    }
  }
  return defect;
}

TEST(HadamardTest, PaleyMatricesAreHadamard) {
  for (const int64_t m : {1, 2, 4, 12, 20, 28, 36, 52, 60, 76, 100, 108, 140, 148, 312, 344}) {
    const std::vector<int8_t> h = PaleyHadamard(m);
    ASSERT_EQ(h.size(), static_cast<size_t>(m * m)) << m;
    EXPECT_TRUE(std::all_of(h.begin(), h.end(), [](int8_t v) { return v == 1 || v == -1; })) << m;
    EXPECT_EQ(Defect(h, m), 0) << m;
  }
  std::vector<int8_t> broken = PaleyHadamard(12);
  broken[17] = static_cast<int8_t>(-broken[17]);
  EXPECT_NE(Defect(broken, 12), 0);
  for (const int64_t m : {3, 6, 92, 156}) EXPECT_TRUE(PaleyHadamard(m).empty()) << m;
}

TEST(HadamardTest, RotatingInputAndWeightDoesNotChangeTheFunction) {
  for (const int64_t n : {1, 8, 12, 72, 576}) {
    const Tensor x = RandomTensor({5, n}, 1), w = RandomTensor({7, n}, 2);
    const std::vector<double> reference = Output(Values(x), Values(w), n);
    ASSERT_OK_AND_ASSIGN(const HadamardRotation rotation, HadamardRotation::Create(n, 11));
    std::vector<float> xq = Values(x), wq = Values(w);
    rotation.RotateRows(std::span<float>(xq));
    if (n > 8) {
      EXPECT_GT(Change(Output(xq, wq, n), reference), 0.1);
    }
    rotation.RotateRows(std::span<float>(wq));
    EXPECT_LT(Change(Output(xq, wq, n), reference), 1e-5) << n;
    rotation.RotateRowsBack(std::span<float>(xq));
    for (int64_t i = 0; i < 5 * n; ++i) EXPECT_NEAR(xq[i], x.data<float>()[i], 1e-5);
  }
}

TEST(HadamardTest, ARotatedOutputMeetsARotatedInput) {
  const int64_t n = 24;
  const Tensor z = RandomTensor({3, 10}, 1), first = RandomTensor({n, 10}, 2),
               second = RandomTensor({4, n}, 3);
  ASSERT_OK_AND_ASSIGN(const HadamardRotation rotation, HadamardRotation::Create(n, 5));
  const auto run = [&](std::span<const float> a, std::span<const float> b) {
    const std::vector<double> middle = Output(Values(z), a, 10);
    return Output(std::vector<float>(middle.begin(), middle.end()), b, n);
  };
  std::vector<float> a = Values(first), b = Values(second);
  const std::vector<double> reference = run(a, b);
  rotation.RotateOutput(std::span<float>(a), 10);
  rotation.RotateRows(std::span<float>(b));
  EXPECT_LT(Change(run(a, b), reference), 1e-5);
}

TEST(HadamardTest, SpreadsAnOutlierAndDependsOnTheSeed) {
  ASSERT_OK_AND_ASSIGN(const HadamardRotation rotation, HadamardRotation::Create(1536, 1));
  ASSERT_OK_AND_ASSIGN(const HadamardRotation other, HadamardRotation::Create(1536, 2));
  EXPECT_EQ(rotation.base_order(), 12);
  std::vector<float> x = RandomNormal(1536, 3), y = x;
  x[7] = y[7] = 1000;
  rotation.RotateRows(std::span<float>(x));
  other.RotateRows(std::span<float>(y));
  EXPECT_NE(x, y);
  for (const float v : x) EXPECT_LT(std::fabs(v), 1000 / std::sqrt(1536.0) + 6);
  EXPECT_THAT(HadamardRotation::Create(0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("n=0")));
  EXPECT_THAT(HadamardRotation::Create(7),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("n=7")));
}

TEST(LowRankTest, FindsTheDominantPartAndLeavesTheRest) {
  // Rank 4 of size 10, and noise of size 0.1.
  const int64_t n = 60, k = 90, r = 4;
  const std::vector<float> a = RandomNormal(n * r, 1), b = RandomNormal(r * k, 2);
  std::vector<float> w = RandomNormal(n * k, 3, 0.1f);
  double noise = 0;
  for (const float v : w) noise += v * v;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t l = 0; l < r; ++l) w[i * k + j] += a[i * r + l] * b[l * k + j];
    }
  }
  const Tensor tensor = TensorOf({n, k}, w);
  const auto rest = [&](int64_t rank) {
    const LowRank found = FactorLowRank(tensor.view(), {.rank = rank}).value();
    double sum = 0;
    for (const float v : found.residual) sum += v * v;
    // L1 L2 + R = W but for f32 rounding of values below 40.
    for (int64_t i = 0; i < n * k; ++i) {
      double value = found.residual[i];
      for (int64_t l = 0; l < rank; ++l)
        value += static_cast<double>(found.left[i / k * rank + l]) * found.right[l * k + i % k];
      EXPECT_NEAR(value, w[i], 1e-4);
    }
    return sum;
  };
  EXPECT_LT(rest(4), noise);          // Eckart-Young: no more than the noise remains
  EXPECT_GT(rest(3), 10 * noise);     // one rank less leaves a part of the signal
  EXPECT_LT(rest(60), 1e-6 * noise);  // full rank leaves nothing
}

TEST(LowRankTest, RefusesRanksThatTheMatrixHasNot) {
  const Tensor w = RandomTensor({4, 6}, 1);
  EXPECT_THAT(FactorLowRank(w.view(), {.rank = 5}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("[1, 4]: rank=5")));
}

// Zeros of the golden's weight times `size`, where the reference starts.
struct HqqCase {
  explicit HqqCase(float size) {
    w = Values(Golden().w);
    for (float& v : w) v *= size;
    for (size_t begin = 0; begin < w.size(); begin += kGroup) {
      const auto [low, high] = std::minmax_element(w.begin() + begin, w.begin() + begin + kGroup);
      scales.push_back(Bf16ToF32(F32ToBf16((*high - *low) / 15)));
      zeros.push_back(-*low / scales.back());
    }
  }
  static constexpr int64_t kGroup = 64;
  std::vector<float> w, scales, zeros;

  double LargestDifference(const std::vector<float>& expected, const HqqOptions& options) const {
    const std::vector<float> found = HqqZeros({w, scales, kGroup, 15}, zeros, options);
    double most = 0;
    for (size_t g = 0; g < found.size(); ++g)
      most = std::max<double>(most, std::fabs(found[g] - expected[g]));
    return most;
  }
};

TEST(HqqTest, EqualsTheReferenceZeros) {
  for (const auto& [size, name] : {std::pair{1.0f, "hqq"}, std::pair{32.0f, "hqq_large"}}) {
    const std::vector<float> expected = FromBase64<float>(Golden().json[name]["zeros"]);
    // f32 means of 64 codes there, f64 here: 1e-5; one tie rounded otherwise moves a zero by 1/64.
    EXPECT_LT(HqqCase(size).LargestDifference(expected, {}), 1e-4) << name;
    EXPECT_GT(HqqCase(size).LargestDifference(expected, {.beta = 1e5f}), 1e-3) << name;
  }
  // Where differences are large the norm decides.
  const std::vector<float> large = FromBase64<float>(Golden().json["hqq_large"]["zeros"]);
  EXPECT_GT(HqqCase(32).LargestDifference(large, {.norm = 1}), 1e-3);
}

}  // namespace
}  // namespace assay
