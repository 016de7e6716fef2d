// Our calls of cuBLASLt, against a library of its interface that multiplies on the CPU
// (fake_cublas_lt.cc), with numbers whose sums are exact.
#include "quant/kernels/cuda/cublas_lt.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "base/float16.h"
#include "base/float8.h"
#include "tests/quant/kernels/cuda/fake_cublas_lt.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::unique_ptr<const CublasLt> Fake() {
  auto lt = CublasLt::Load(FAKE_CUBLAS_LT);
  EXPECT_OK(lt.status());
  return *std::move(lt);
}

struct Matrix {
  std::vector<uint16_t> halves;
  std::vector<uint8_t> bytes;
  std::vector<float> values;
};
Matrix Integers(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  Matrix out;
  for (int64_t i = 0; i < count; ++i) {
    const float v = static_cast<float>(static_cast<int>(random() % 9)) - 4;
    out.values.push_back(v);
    out.halves.push_back(F32ToBf16(v));
    out.bytes.push_back(F32ToE4M3(v));
  }
  return out;
}

TEST(CublasLtTest, MultipliesRowsByRows) {
  constexpr int kM = 3, kN = 8, kK = 16;
  const auto lt = Fake();
  EXPECT_EQ(lt->version(), 130001u);
  const Matrix w = Integers(kN * kK, 1), x = Integers(kM * kK, 2);
  const LtProblem problem = {.m = kM, .n = kN, .k = kK};
  ASSERT_OK_AND_ASSIGN(const auto algorithms, lt->Algorithms(problem));
  EXPECT_EQ(algorithms.size(), 2u);  // the one that wants too much is left out
  for (const bool accumulate : {false, true}) {
    for (const LtAlgorithm& algorithm : algorithms) {
      std::vector<float> y(kM * kN, 100.0f);
      char workspace[1024];
      ASSERT_OK(lt->Run(problem,
                        {.w = w.halves.data(),
                         .x = x.halves.data(),
                         .y = y.data(),
                         .accumulate = accumulate,
                         .workspace = workspace},
                        algorithm));
      for (size_t i = 0; i < kM; ++i) {
        for (size_t j = 0; j < kN; ++j) {
          float sum = accumulate ? 100.0f : 0.0f;
          for (size_t k = 0; k < kK; ++k) sum += x.values[i * kK + k] * w.values[j * kK + k];
          EXPECT_EQ(y[i * kN + j], sum);
        }
      }
    }
  }
}

TEST(CublasLtTest, ChecksAlgorithmsOfOtherSizes) {
  FakeCublasLt& fake = ResetFakeCublasLt(FAKE_CUBLAS_LT);
  const auto lt = Fake();
  ASSERT_OK_AND_ASSIGN(const auto algorithms, lt->Algorithms({.m = 128, .n = 8, .k = 16}));
  EXPECT_THAT(lt->Check({.m = 100, .n = 8, .k = 16}, algorithms[0]), IsOkAndHolds(1024u));
  fake.refused_m = 100;
  const auto refused = [](const absl::Status& status) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("m=100")));
  };
  refused(lt->Check({.m = 100, .n = 8, .k = 16}, algorithms[0]).status());
  refused(lt->Run({.m = 100, .n = 8, .k = 16}, {}, algorithms[0]));
  EXPECT_THAT(lt->Check({.m = 100, .n = 8, .k = 16}, {.words = {7}}).status(),
              StatusIs(absl::StatusCode::kUnimplemented));
  ResetFakeCublasLt(FAKE_CUBLAS_LT).fails = true;
  char workspace[1024];
  EXPECT_THAT(
      lt->Run({.m = 4, .n = 8, .k = 16}, {.workspace = workspace}, algorithms[0]),
      StatusIs(absl::StatusCode::kInternal, AllOf(HasSubstr("status=13"), HasSubstr("m=4"))));
  ResetFakeCublasLt(FAKE_CUBLAS_LT);
}

TEST(CublasLtTest, ScalesBelongToTheirSides) {
  constexpr int kM = 4, kN = 16, kK = 256;
  const auto lt = Fake();
  const Matrix w = Integers(kN * kK, 3), x = Integers(kM * kK, 4);
  for (const LtScales scales : {LtScales::kScalar, LtScales::kRows, LtScales::kRows128}) {
    const LtProblem problem = {.m = kM,
                               .n = kN,
                               .k = kK,
                               .operands = LtType::kE4M3,
                               .out = LtType::kF32,
                               .scales = scales};
    ASSERT_OK_AND_ASSIGN(const auto algorithms, lt->Algorithms(problem));
    std::vector<float> w_scales, x_scales;  // powers of two
    for (int i = 0; i < 2 * kN; ++i) w_scales.push_back(static_cast<float>(1 << (i % 5)));
    for (int i = 0; i < 2 * kM; ++i) x_scales.push_back(1 / static_cast<float>(1 << (i % 3)));
    std::vector<float> y(kM * kN);
    char workspace[1024];
    ASSERT_OK(lt->Run(problem,
                      {.w = w.bytes.data(),
                       .x = x.bytes.data(),
                       .w_scales = w_scales.data(),
                       .x_scales = x_scales.data(),
                       .y = y.data(),
                       .workspace = workspace},
                      algorithms[0]));
    for (size_t i = 0; i < kM; ++i) {
      for (size_t j = 0; j < kN; ++j) {
        float sum = 0;
        for (size_t k = 0; k < kK; ++k) {
          const size_t of_w = scales == LtScales::kScalar ? 0
                              : scales == LtScales::kRows ? j
                                                          : k / 128 * kN + j;
          const size_t of_x = scales == LtScales::kScalar ? 0
                              : scales == LtScales::kRows ? i
                                                          : k / 128 * kM + i;
          sum += x.values[i * kK + k] * w.values[j * kK + k] * w_scales[of_w] * x_scales[of_x];
        }
        EXPECT_EQ(y[i * kN + j], sum) << static_cast<int>(scales);
      }
    }
  }
}

TEST(CublasLtTest, SaysWhatItLacks) {
  EXPECT_THAT(CublasLt::Load("/nowhere/libcublasLt.so").status(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nowhere/libcublasLt.so")));
  EXPECT_THAT(CublasLt::Load("libm.so.6").status(),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("function=cublasLtCreate")));
  EXPECT_THAT(Fake()->Algorithms({.m = 1, .n = 8, .k = 48}).status(),
              StatusIs(absl::StatusCode::kUnimplemented,
                       AllOf(HasSubstr("no algorithm"), HasSubstr("k=48"), HasSubstr("130001"))));
}

TEST(CublasLtTest, KnowsTheRulesOfTheDevices) {
  LtProblem p = {.m = 5, .n = 64, .k = 64, .operands = LtType::kE4M3, .scales = LtScales::kRows};
  EXPECT_EQ(LtRefuses(p, 90), nullptr);
  EXPECT_THAT(LtRefuses(p, 89), HasSubstr("9.0"));
  EXPECT_THAT(LtRefuses(p, 120), HasSubstr("9.0"));
  p.scales = LtScales::kScalar;
  EXPECT_EQ(LtRefuses(p, 89), nullptr);
  EXPECT_THAT(LtRefuses(p, 86), HasSubstr("8.9"));
  p.k = 72;
  EXPECT_THAT(LtRefuses(p, 90), HasSubstr("rows of k"));
  p.k = 64;
  p.scales = LtScales::kRows128;
  EXPECT_THAT(LtRefuses(p, 90), HasSubstr("rows of scales"));  // m = 5
  p.m = 8;
  EXPECT_EQ(LtRefuses(p, 90), nullptr);
  p = {.m = 1, .n = 6, .k = 64};
  EXPECT_THAT(LtRefuses(p, 90), HasSubstr("rows of n"));
  p.n = 8;
  EXPECT_THAT(LtRefuses(p, 75), HasSubstr("bf16"));
  p.operands = LtType::kF16;
  EXPECT_EQ(LtRefuses(p, 75), nullptr);
}

}  // namespace
}  // namespace assay
