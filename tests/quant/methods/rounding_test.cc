// The contract of every rounding method, then each against its reference algorithm.
#include "quant/methods/rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "quant/methods/clip_search.h"
#include "quant/methods/output_error.h"
#include "tests/quant/methods/methods_golden.h"
#include "tests/support/fake_clock.h"

namespace assay {
namespace {

using testing::HasSubstr;

const QuantScheme& SchemeOf(std::string_view spelling) { return *FindScheme(spelling).value(); }
const Rounding& RoundingOf(std::string_view spelling) { return *FindRounding(spelling).value(); }

// A grid with scales and zero points of its own per group: every method can steer it.
constexpr const char* kSteerable = "int4_group:g32,asym";

class EveryRoundingTest : public testing::TestWithParam<const Rounding*> {
 protected:
  void SetUp() override {
    if (!FindScheme(kSteerable).ok()) GTEST_SKIP() << kSteerable << " is not built";
  }
};
INSTANTIATE_TEST_SUITE_P(All, EveryRoundingTest,
                         testing::ValuesIn(AllRoundings().begin(), AllRoundings().end()),
                         [](const auto& info) {
                           std::string name(info.param->name());
                           for (char& c : name)
                             if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
                           return name;
                         });

TEST_P(EveryRoundingTest, IsFoundByItsName) {
  EXPECT_THAT(FindRounding(GetParam()->name()), IsOkAndHolds(GetParam()));
}

TEST_P(EveryRoundingTest, GivesSoundCodesThatDoNotDependOnThreads) {
  const GoldenLayer& golden = Golden();
  const InputStatistics input = golden.Statistics({.cross = true});
  ThreadPool pool({.num_threads = 3});
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor alone,
                       GetParam()->Quantize(golden.w.view(), SchemeOf(kSteerable), &input, {}));
  ASSERT_OK_AND_ASSIGN(
      const QuantizedTensor together,
      GetParam()->Quantize(golden.w.view(), SchemeOf(kSteerable), &input, {.pool = &pool}));
  EXPECT_EQ(alone.shape, golden.w.shape());
  EXPECT_EQ(alone.scheme->Inspect(alone).defect, "");
  EXPECT_EQ(Decoded(alone), Decoded(together));
}

TEST_P(EveryRoundingTest, SaysWhatStatisticsItMisses) {
  const GoldenLayer& golden = Golden();
  if (GetParam()->needs() == StatisticsNeed::kNothing) {
    EXPECT_OK(GetParam()->Quantize(golden.w.view(), SchemeOf(kSteerable), nullptr, {}));
    return;
  }
  EXPECT_THAT(GetParam()->Quantize(golden.w.view(), SchemeOf(kSteerable), nullptr, {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("tokens=0")));
  const InputStatistics input = golden.Statistics({.cross = true});
  const Tensor other = RandomTensor({4, 64}, 1);
  EXPECT_THAT(GetParam()->Quantize(other.view(), SchemeOf(kSteerable), &input, {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("w=[4,64] input=128")));
  if (GetParam()->needs() == StatisticsNeed::kSquares) return;
  const InputStatistics plain = golden.Statistics({});
  EXPECT_THAT(GetParam()->Quantize(golden.w.view(), SchemeOf(kSteerable), &plain, {}),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("not collected")));
}

TEST_P(EveryRoundingTest, RefusesNaN) {
  const GoldenLayer& golden = Golden();
  const InputStatistics input = golden.Statistics({.cross = true});
  Tensor w = RandomTensor(golden.w.shape(), 1);
  w.data<float>()[3 * golden.k + 5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT(GetParam()->Quantize(w.view(), SchemeOf(kSteerable), &input, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("row=3 column=5")));
}

TEST(RoundingListTest, SpellsOptionsCanonically) {
  EXPECT_EQ(FindRounding("gptq:damp=0.05,act_order"), FindRounding("gptq:act_order,damp=0.05"));
  EXPECT_EQ(FindRounding("gptq:damp=0.01"), FindRounding("gptq"));
  EXPECT_EQ(RoundingOf("gptq:damp=0.05,act_order").name(), "gptq:act_order,damp=0.05");
  EXPECT_THAT(FindRounding("gptq:dump=1"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("unknown option \"dump=1\"")));
  EXPECT_THAT(FindRounding("gptq:damp=2"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("damp=0..1")));
  EXPECT_THAT(FindRounding("gptq:clip=all"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("clip=none|mse")));
  EXPECT_THAT(FindRounding("magic"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("magic; known: nearest, mse")));
}

// Elements in which q differs from the golden values.
int64_t Differences(const QuantizedTensor& q, const std::vector<float>& expected) {
  const std::vector<float> decoded = Decoded(q);
  int64_t different = 0;
  for (size_t i = 0; i < expected.size(); ++i)
    different += std::fabs(decoded[i] - expected[i]) > 1e-6f;  // a step is 1e-3 and more
  return different;
}

TEST(GptqTest, EqualsTheReferenceAlgorithm) {
  const GoldenLayer& golden = Golden();
  const InputStatistics input = golden.Statistics({.cross = true});
  int64_t compared = 0;
  for (const auto& [name, expected] : golden.json["gptq"].items()) {
    const std::string scheme = name.substr(0, name.find(' '));
    if (!FindScheme(scheme).ok()) continue;
    SCOPED_TRACE(name);
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor q,
                         RoundingOf(name.substr(name.find(' ') + 1))
                             .Quantize(golden.w.view(), SchemeOf(scheme), &input, {}));
    EXPECT_EQ(Differences(q, FromBase64<float>(expected)), 0);
    ++compared;
  }
  EXPECT_GE(compared, 7);
}

TEST(GptqTest, TheGoldenSeesAnotherDamping) {
  const GoldenLayer& golden = Golden();
  const InputStatistics input = golden.Statistics();
  ASSERT_OK_AND_ASSIGN(
      const QuantizedTensor q,
      RoundingOf("gptq:damp=0.02").Quantize(golden.w.view(), SchemeOf("int8_channel"), &input, {}));
  EXPECT_GT(Differences(q, FromBase64<float>(golden.json["gptq"]["int8_channel gptq"])), 0);
}

TEST(GptqTest, RefusesTooFewRowsWithTheNumbers) {
  const GoldenLayer& golden = Golden();
  InputStatistics input = InputStatistics::Create(golden.k, {.hessian = true}).value();
  const Tensor few = RandomTensor({500, golden.k}, 1);
  ASSERT_OK(input.Update(few.view(), nullptr));
  EXPECT_THAT(
      RoundingOf("gptq").Quantize(golden.w.view(), SchemeOf("int8_channel"), &input, {}),
      StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("rows=500 needed=512 k=128")));
  EXPECT_OK(
      RoundingOf("gptq:rows=3").Quantize(golden.w.view(), SchemeOf("int8_channel"), &input, {}));
}

TEST(GptqTest, ZeroDampingOfASingularHessianIsRetriedWithMore) {
  InputStatistics input = InputStatistics::Create(8, {.hessian = true}).value();
  std::vector<float> x = RandomNormal(64 * 8, 3);
  for (int64_t t = 0; t < 64; ++t) x[t * 8 + 1] = x[t * 8];  // two equal channels
  const Tensor tensor = TensorOf({64, 8}, x), w = RandomTensor({5, 8}, 4);
  ASSERT_OK(input.Update(tensor.view(), nullptr));
  EXPECT_OK(RoundingOf("gptq:damp=0").Quantize(w.view(), SchemeOf("int8_channel"), &input, {}));
}

// Held-out error of each method, over that of nearest rounding.
std::map<std::string, double> Relative(std::string_view scheme,
                                       const std::vector<std::string>& names) {
  const HardLayer layer(48, 160, 1000, 7);
  InputStatistics input = InputStatistics::Create(160, {.hessian = true}).value();
  EXPECT_OK(input.Update(layer.x.view(), nullptr));
  std::map<std::string, double> errors;
  const auto error = [&](const std::string& name) {
    return layer.HeldOutError(
        RoundingOf(name).Quantize(layer.w.view(), SchemeOf(scheme), &input, {}).value());
  };
  const double nearest = error("nearest");
  for (const std::string& name : names) errors[name] = error(name) / nearest;
  return errors;
}

TEST(RoundingOrderTest, CalibratedMethodsBeatNearestOnHeldOutInputs) {
  for (const char* scheme : {"int8_channel", "int4_group:g32"}) {
    if (!FindScheme(scheme).ok()) continue;
    SCOPED_TRACE(scheme);
    const std::map<std::string, double> errors = Relative(
        scheme, {"gptq", "gptq:act_order", "imatrix", "awq_clip", "learned:iterations=60"});
    // Clipping in steps of 5 % helps no row of 8-bit codes: it keeps the whole range.
    for (const auto& [name, error] : errors)
      EXPECT_LT(error, name == "awq_clip" ? 1.001 : 0.98) << name;
    EXPECT_LT(errors.at("gptq:act_order"), 0.7);
    EXPECT_LT(errors.at("learned:iterations=60"), 0.8);
  }
}

TEST(RoundingOrderTest, StatisticsOfAnotherInputDoNotHelp) {
  const HardLayer layer(48, 160, 1000, 7);
  InputStatistics wrong = InputStatistics::Create(160, {.hessian = true}).value();
  const Tensor other = HardLayer::Inputs(160, 1000, 99);
  ASSERT_OK(wrong.Update(other.view(), nullptr));
  const QuantScheme& scheme = SchemeOf("int8_channel");
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q,
                       RoundingOf("gptq").Quantize(layer.w.view(), scheme, &wrong, {}));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor nearest, scheme.Encode(layer.w.view()));
  EXPECT_GT(layer.HeldOutError(q), 0.98 * layer.HeldOutError(nearest));
}

TEST(ClipSearchTest, EqualsTheReferenceGrid) {
  const GoldenLayer& golden = Golden();
  const InputStatistics input = golden.Statistics({});
  for (const auto& [kind, norm] : {std::pair{"mse", 2.4}, std::pair{"imatrix", 2.0}}) {
    for (const auto& [scheme, expected] : golden.json[kind].items()) {
      const ClipSearch search{
          .error = norm == 2 ? ClipSearch::Error::kSquares : ClipSearch::Error::kWeight,
          .norm = norm};
      ASSERT_OK_AND_ASSIGN(const std::vector<float> shrink,
                           SearchShrink(golden.w.view(), SchemeOf(scheme), &input, search));
      ASSERT_EQ(shrink.size(), expected.size());
      int64_t different = 0;
      for (size_t i = 0; i < shrink.size(); ++i)
        different += std::fabs(shrink[i] - expected[i].get<double>()) > 1e-6;
      EXPECT_EQ(different, 0) << kind << " " << scheme;
    }
  }
}

TEST(HqqRoundingTest, LowersTheNormThatItMinimises) {
  const Tensor w = RandomTensor({16, 128}, 5);  // of a size at which the norm matters
  for (const char* scheme :
       {"int4_group:g64,asym", "int4_group:g64,float", "int8_group:g64,asym"}) {
    if (!FindScheme(scheme).ok()) continue;
    const auto error = [&](std::string_view rounding) {
      const QuantizedTensor q =
          RoundingOf(rounding).Quantize(w.view(), SchemeOf(scheme), nullptr, {}).value();
      EXPECT_EQ(q.scheme->Inspect(q).defect, "");
      const std::vector<float> decoded = Decoded(q);
      double sum = 0;
      for (size_t i = 0; i < decoded.size(); ++i)
        sum += std::pow(std::fabs(decoded[i] - w.data<float>()[i]), 0.7);
      return sum;
    };
    EXPECT_LE(error("hqq"), error("nearest")) << scheme;
  }
}

TEST(HqqRoundingTest, RefusesGridsWithoutZeroPoints) {
  const GoldenLayer& golden = Golden();
  for (const char* scheme : {"int8_channel", "int4_group", "nf4"}) {
    if (!FindScheme(scheme).ok()) continue;
    EXPECT_THAT(RoundingOf("hqq").Quantize(golden.w.view(), SchemeOf(scheme), nullptr, {}),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr(absl::StrCat("scheme=", std::string(SchemeOf(scheme).name())))));
  }
}

TEST(GptqTest, SchemesWithSharedSecondScalesFallBackToStaticGroups) {
  const GoldenLayer& golden = Golden();
  const InputStatistics input = golden.Statistics();
  ASSERT_OK_AND_ASSIGN(const OutputError error, OutputError::Create(input));
  for (const char* scheme : {"w4a8:g32", "nf4", "nf4:double", "nvfp4", "mxfp4", "fp8_e4m3"}) {
    if (!FindScheme(scheme).ok()) continue;
    const auto output_error = [&](std::string_view rounding) {
      const QuantizedTensor q =
          RoundingOf(rounding).Quantize(golden.w.view(), SchemeOf(scheme), &input, {}).value();
      std::vector<float> difference = Decoded(q);
      for (size_t i = 0; i < difference.size(); ++i) difference[i] -= golden.w.data<float>()[i];
      return error.Sum(difference, nullptr);
    };
    EXPECT_LT(output_error("gptq"), output_error("nearest")) << scheme;
  }
}

TEST(LearnedTest, IsNeverWorseThanNearestOnItsOwnMeasure) {
  const GoldenLayer& golden = Golden();
  const InputStatistics input = golden.Statistics();
  ASSERT_OK_AND_ASSIGN(const OutputError error, OutputError::Create(input));
  const auto rows = [&](std::string_view rounding) {
    const QuantizedTensor q = RoundingOf(rounding)
                                  .Quantize(golden.w.view(), SchemeOf("int8_channel"), &input, {})
                                  .value();
    std::vector<float> difference = Decoded(q);
    for (size_t i = 0; i < difference.size(); ++i) difference[i] -= golden.w.data<float>()[i];
    return error.Rows(difference, nullptr);
  };
  const std::vector<double> nearest = rows("nearest");
  // One huge step makes everything worse: the beginning is kept.
  const std::vector<double> spoiled = rows("learned:iterations=1,lr=1");
  const std::vector<double> learned = rows("learned:iterations=50");
  double saved = 0, total = 0;
  for (size_t row = 0; row < nearest.size(); ++row) {
    EXPECT_LE(spoiled[row], nearest[row] * (1 + 1e-5));
    EXPECT_LE(learned[row], nearest[row] * (1 + 1e-5));
    saved += nearest[row] - learned[row];
    total += nearest[row];
  }
  EXPECT_GT(saved, 0.05 * total);
}

TEST(LearnedTest, StopsAtTheDeadlineWithWhatItHas) {
  const GoldenLayer& golden = Golden();
  const InputStatistics input = golden.Statistics();
  const FakeClock clock;
  const RoundingContext late{.clock = &clock, .deadline = clock.Now()};
  const QuantScheme& scheme = SchemeOf("int8_channel");
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor q,
                       RoundingOf("learned").Quantize(golden.w.view(), scheme, &input, late));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor nearest, scheme.Encode(golden.w.view()));
  EXPECT_EQ(Decoded(q), Decoded(nearest));
}

TEST(OutputErrorTest, HessianSamplesAndDiagonalAgreeWhereTheyMust) {
  const Tensor x = RandomTensor({40, 6}, 1);
  const std::vector<float> difference = RandomNormal(3 * 6, 2);
  double expected = 0;
  for (int64_t t = 0; t < 40; ++t) {
    for (int64_t row = 0; row < 3; ++row) {
      double sum = 0;
      for (int64_t j = 0; j < 6; ++j) sum += difference[row * 6 + j] * x.data<float>()[t * 6 + j];
      expected += sum * sum / 40;
    }
  }
  for (const InputStatisticsOptions& options :
       {InputStatisticsOptions{.hessian = true}, InputStatisticsOptions{.sample_rows = 40}}) {
    InputStatistics input = InputStatistics::Create(6, options).value();
    ASSERT_OK(input.Update(x.view(), nullptr));
    ASSERT_OK_AND_ASSIGN(const OutputError error, OutputError::Create(input));
    EXPECT_NEAR(error.Sum(difference, nullptr), expected, 1e-4 * expected);
  }
  InputStatistics diagonal = InputStatistics::Create(6, {}).value();
  ASSERT_OK(diagonal.Update(x.view(), nullptr));
  ASSERT_OK_AND_ASSIGN(const OutputError error, OutputError::Create(diagonal));
  EXPECT_GT(std::fabs(error.Sum(difference, nullptr) - expected), 1e-3 * expected);
}

}  // namespace
}  // namespace assay
