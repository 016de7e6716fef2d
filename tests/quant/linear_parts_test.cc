// Rotated inputs and low-rank branches around every kernel, against the plain f32 product.
#include "quant/linear_parts.h"

#include <cfloat>
#include <cmath>

#include "base/thread_pool.h"
#include "gtest/gtest.h"
#include "quant/activation.h"
#include "quant/linear.h"
#include "quant/methods/low_rank.h"
#include "quant/schemes/schemes.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr int64_t kOut = 40, kRows = 9, kRank = 4;

std::vector<float> Values(const Tensor& tensor) {
  return {tensor.data<float>(), tensor.data<float>() + tensor.shape().elements()};
}

struct Parts {
  bool rotated = false, low_rank = false;
};

// W in `scheme` with these parts: rotated first, then the branch taken out.
QuantizedTensor Encode(const QuantScheme& scheme, const Tensor& w, Parts parts) {
  const int64_t k = w.shape()[1];
  std::vector<float> rest = Values(w);
  const HadamardRotation rotation = *HadamardRotation::Create(k, uint64_t{7});
  if (parts.rotated) rotation.RotateRows(rest);
  LowRankBranch branch;
  if (parts.low_rank) {
    const Tensor rotated = TensorOf(w.shape(), rest);
    const LowRank factors = *FactorLowRank(rotated.view(), {.rank = kRank});
    branch = *MakeLowRankBranch(factors.left, factors.right, kRank);
    SubtractLowRank(branch, rest);
  }
  QuantizedTensor q = *scheme.Encode(TensorOf(w.shape(), rest).view());
  if (parts.rotated) {
    EXPECT_OK(WriteInputRotation(rotation, q));
  }
  if (parts.low_rank) WriteLowRank(std::move(branch), q);
  return q;
}

struct Call {
  ActivationMode activation = ActivationMode::kA16;
  bool bias = false, accumulate = false;
};

// y for x [m, k]; the arena is as large as the linear asked for.
std::vector<float> Forward(const QuantizedTensor& w, const Tensor& x, const Call& call = {}) {
  const int64_t m = x.shape()[0];
  Tensor bias = call.bias ? RandomTensor({w.shape[0]}, 5) : Tensor();
  const QuantizedLinear linear =
      *QuantizedLinear::Create(w, std::move(bias), {.activation = call.activation});
  ThreadPool pool({.num_threads = 2});
  Arena arena = *Arena::Create(CpuDevice(), linear.scratch_bytes(m));
  ComputeContext context = {pool, arena};
  Tensor y = RandomTensor({m, w.shape[0]}, 6);
  linear.Forward(x.view(), y.mutable_view(), context, call.accumulate);
  return Values(y);
}

// Outputs that differ from the plain product by more than f32 explains. Rotating keeps norms, so
// by Cauchy and Schwarz the terms of a product sum to at most |x| |w| in magnitude; its k products
// and sums, the rotations of x and of w (base + log2 k sums each, base <= 36 here) and the branch's
// r + 3 further sums carry one eps / 2 of that each. Twice that for A and B in bf16: what they lose
// is in the residual again.
int CountWrong(const Tensor& w, const Tensor& x, const Call& call, const std::vector<float>& y) {
  const int64_t k = w.shape()[1];
  const std::vector<float> expected = Forward(Encode(F32Scheme(), w, {}), x, call);
  const auto norm = [k](const float* row) {
    double sum = 0;
    for (int64_t i = 0; i < k; ++i) sum += static_cast<double>(row[i]) * row[i];
    return std::sqrt(sum);
  };
  int wrong = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    const auto row = static_cast<int64_t>(i) / kOut, column = static_cast<int64_t>(i) % kOut;
    const double bound = static_cast<double>(k + 2 * (36 + 12) + 3 + kRank) * FLT_EPSILON *
                         (norm(x.data<float>() + row * k) * norm(w.data<float>() + column * k) + 8);
    wrong += !(std::fabs(y[i] - expected[i]) <= bound);
  }
  return wrong;
}

TEST(LinearPartsTest, TheFunctionIsThatOfThePlainWeight) {
  for (const int64_t k : {4, 48, 64, 576, 1536}) {
    const Tensor w = RandomTensor({kOut, k}, 1), x = RandomTensor({kRows, k}, 2);
    for (const Parts parts : {Parts{true, false}, Parts{false, true}, Parts{true, true}}) {
      const QuantizedTensor q = Encode(F32Scheme(), w, parts);
      for (const Call& call : {Call{}, Call{.bias = true, .accumulate = true}}) {
        EXPECT_EQ(CountWrong(w, x, call, Forward(q, x, call)), 0)
            << "k=" << k << " rotated=" << parts.rotated << " low_rank=" << parts.low_rank;
      }
    }
  }
}

// Siblings: the comparison sees each of these.
TEST(LinearPartsTest, TheComparisonSeesWrongParts) {
  const int64_t k = 576;
  const Tensor w = RandomTensor({kOut, k}, 1), x = RandomTensor({kRows, k}, 2);
  const auto wrong = [&](const QuantizedTensor& q) {
    return CountWrong(w, x, {}, Forward(q, x)) > kOut * kRows / 2;
  };
  QuantizedTensor rotated = Encode(F32Scheme(), w, {.rotated = true});
  rotated.extra["x_rotation"].data<int8_t>()[100] *= -1;
  EXPECT_TRUE(wrong(rotated)) << "one wrong sign";
  rotated.extra.clear();
  EXPECT_TRUE(wrong(rotated)) << "rotated weights, no mark";
  QuantizedTensor plain = Encode(F32Scheme(), w, {});
  ASSERT_OK(WriteInputRotation(*HadamardRotation::Create(k, uint64_t{7}), plain));
  EXPECT_TRUE(wrong(plain)) << "marked weights that are not rotated";
  QuantizedTensor branch = Encode(F32Scheme(), w, {.low_rank = true});
  auto* b = branch.extra["low_rank_b"].data<uint16_t>();
  for (int64_t i = 0; i < kOut * kRank; ++i) b[i] ^= 0x8000u;
  EXPECT_TRUE(wrong(branch)) << "the branch subtracted";
  branch.extra.clear();
  EXPECT_TRUE(wrong(branch)) << "no branch";
}

TEST(LinearPartsTest, RowsDecodeToThePlainWeight) {
  const int64_t k = 48;
  const Tensor w = RandomTensor({kOut, k}, 1);
  const QuantizedLinear linear =
      *QuantizedLinear::Create(Encode(F32Scheme(), w, {true, true}), {}, {});
  EXPECT_TRUE(linear.rotates_input());
  EXPECT_EQ(linear.low_rank(), kRank);
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t i = 0; i < kOut; ++i) {
    linear.DecodeRow(i, row);
    for (int64_t j = 0; j < k; ++j) EXPECT_NEAR(row[j], w.data<float>()[i * k + j], 1e-5);
  }
}

TEST(LinearPartsTest, ARowDependsOnItselfAlone) {
  const int64_t k = 144;
  const Tensor w = RandomTensor({kOut, k}, 1), x = RandomTensor({kRows, k}, 2);
  const QuantizedTensor q = Encode(*FindScheme("int4_group:g32").value(), w, {true, true});
  const std::vector<float> all = Forward(q, x, {.activation = ActivationMode::kA4Token});
  const std::vector<float> values = Values(x);
  for (int64_t r = 0; r < kRows; ++r) {
    const Tensor row = TensorOf({1, k}, {values.begin() + r * k, values.begin() + (r + 1) * k});
    const std::vector<float> y = Forward(q, row, {.activation = ActivationMode::kA4Token});
    EXPECT_TRUE(std::equal(y.begin(), y.end(), all.begin() + r * kOut)) << r;
  }
}

// Inputs with a few large channels, as down_proj has them: what QuaRot and SVDQuant are for.
double SqnrOfW4A4(Parts parts) {
  const int64_t k = 1536, m = 64;
  const Tensor w = RandomTensor({kOut, k}, 1);
  Tensor x = RandomTensor({m, k}, 2);
  for (int64_t r = 0; r < m; ++r) {
    for (const int64_t channel : {3, 700, 1111}) x.data<float>()[r * k + channel] *= 30;
  }
  const std::vector<float> exact = Forward(Encode(F32Scheme(), w, {}), x);
  const std::vector<float> y = Forward(Encode(*FindScheme("int4_group:g32,asym").value(), w, parts),
                                       x, {.activation = ActivationMode::kA4Token});
  double signal = 0, noise = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    signal += static_cast<double>(exact[i]) * exact[i];
    noise += std::pow(static_cast<double>(y[i]) - exact[i], 2);
  }
  return 10 * std::log10(signal / noise);
}

TEST(LinearPartsTest, RotationPaysWithFourBitActivationsAndOutlierChannels) {
  const double plain = SqnrOfW4A4({}), rotated = SqnrOfW4A4({.rotated = true});
  RecordProperty("plain_db", std::to_string(plain));
  RecordProperty("rotated_db", std::to_string(rotated));
  // Rotated, a row is near Gaussian: 4 bits with a scale per row of 1536 give 15 dB, the
  // weights 21.
  EXPECT_GT(rotated, 13);
  EXPECT_GT(rotated, plain + 3);
}

TEST(LinearPartsTest, WrongTensorsAreNamed) {
  const auto status = [](const QuantizedTensor& q) {
    return QuantizedLinear::Create(q, {}, {}).status();
  };
  const Tensor w = RandomTensor({kOut, 48}, 1);
  QuantizedTensor q = Encode(F32Scheme(), w, {true, true});
  q.extra["x_rotation"].data<int8_t>()[5] = 0;
  EXPECT_THAT(status(q), StatusIs(StatusCode::kInvalidArgument,
                                  HasSubstr("x_rotation: a sign is 1 or -1: sign=0 at 5")));
  q.extra["x_rotation"] = *Tensor::Create(CpuDevice(), {47}, DType::kI8);
  EXPECT_THAT(status(q), StatusIs(StatusCode::kInvalidArgument,
                                  HasSubstr("x_rotation must be signs i8 [48], not i8[47]")));
  q.extra.erase("x_rotation");
  q.extra.erase("low_rank_a");
  EXPECT_THAT(status(q), StatusIs(StatusCode::kInvalidArgument, HasSubstr("absent: low_rank_a")));
  q.extra["low_rank_a"] = *Tensor::Create(CpuDevice(), {kRank + 1, 48}, DType::kBf16);
  EXPECT_THAT(status(q), StatusIs(StatusCode::kInvalidArgument,
                                  HasSubstr("low_rank_b must be bf16 [40, 5], not bf16[40,4]")));
  // 92 = 4 * 23: Paley's constructions have no matrix of this order.
  QuantizedTensor odd = *F32Scheme().Encode(RandomTensor({kOut, 92}, 1).view());
  odd.extra["x_rotation"] = *Tensor::Create(CpuDevice(), {92}, DType::kI8);
  EXPECT_THAT(status(odd),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("x_rotation: no Hadamard matrix")));
}

TEST(KeyPartsTest, SurviveTheirTensorsAndWrongOnesAreNamed) {
  QuantizedTensor q = *F32Scheme().Encode(RandomTensor({8, 4}, 1).view());
  EXPECT_EQ(QuantizedLinear::Create(q, {}, {})->keys(), nullptr);
  ASSERT_OK(WriteKeyParts({.mean = {1, -2}, .scale = {0.5f, 4}, .int8_scores = true}, q));
  ASSERT_OK_AND_ASSIGN(const QuantizedLinear linear, QuantizedLinear::Create(q, {}, {}));
  ASSERT_NE(linear.keys(), nullptr);
  EXPECT_THAT(linear.keys()->mean, testing::ElementsAre(1, -2));
  EXPECT_THAT(linear.keys()->scale, testing::ElementsAre(0.5f, 4));
  EXPECT_TRUE(linear.keys()->int8_scores);
  q.extra["key_scale"].data<float>()[1] = 0;
  EXPECT_THAT(ReadKeyParts(q),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("channel=1 mean=-2 scale=0")));
  q.extra["key_scale"] = *Tensor::Create(CpuDevice(), {3}, DType::kF32);
  EXPECT_THAT(ReadKeyParts(q), StatusIs(StatusCode::kInvalidArgument,
                                        HasSubstr("key_scale must be f32 [c], not f32[3]")));
  q.extra.erase("key_scale");
  EXPECT_THAT(ReadKeyParts(q),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("absent: key_scale")));
}

}  // namespace
}  // namespace assay
