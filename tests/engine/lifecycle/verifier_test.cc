#include "engine/lifecycle/verifier.h"

#include "engine/lifecycle/fallback.h"
#include "engine/lifecycle/layer_check.h"
#include "tests/engine/lifecycle/admission_fixture.h"
#include "tests/support/random_tensor.h"

namespace assay {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class VerifierTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(Stories260k()));
    ASSERT_OK_AND_ASSIGN(tokenizer_, MakeTokenizer(checkpoint_->tokenizer()));
    ASSERT_OK_AND_ASSIGN(reference_, BuildUniform(*checkpoint_, "f32", {}));
    source_ = std::make_unique<ResidentLayers>(reference_);
    ASSERT_OK_AND_ASSIGN(set_,
                         MakeEvaluationSet(BundledEvaluationText(), "bundled", tokenizer_.get(),
                                           reference_->spec(), {.documents = 3, .window = 150}));
    ASSERT_OK_AND_ASSIGN(verifier_, Verifier::Create(*source_, set_, pool_));
  }
  std::unique_ptr<const Model> Int8() {
    return BuildUniform(*checkpoint_, "int8_channel", {.activation = ActivationMode::kA8Token})
        .value();
  }
  // Of every slot that is multiplied.
  absl::StatusOr<std::map<std::string, double>> OutputSqnr(const LinearMap& served) {
    std::map<std::string, double> result;
    for (const auto& [name, original] : reference_->linears()) {
      ASSIGN_OR_RETURN(
          const std::optional<double> sqnr,
          verifier_->reference().OutputSqnr(name, *original, *served.find(name)->second));
      if (sqnr.has_value()) result[name] = *sqnr;
    }
    return result;
  }
  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<const Model> reference_;
  std::unique_ptr<const LayerSource> source_;
  EvaluationSet set_;
  std::unique_ptr<Verifier> verifier_;
};

TEST_F(VerifierTest, TheReferenceEqualsItself) {
  ASSERT_OK_AND_ASSIGN(const VerificationResult result,
                       verifier_->Compare(*reference_, DType::kF32, {}, nullptr));
  EXPECT_EQ(result.documents, 3);
  EXPECT_EQ(result.tokens, 3 * 149);
  EXPECT_LT(result.kl_max, 1e-12);
  EXPECT_EQ(result.top1_agreement.mean, 1);
  EXPECT_EQ(result.perplexity_ratio, 1);
  EXPECT_EQ(result.decode_kl_max, 0);  // batch-invariant kernels
  EXPECT_THAT(result.defects, IsEmpty());
}

TEST_F(VerifierTest, WhatTheReferenceComputedOnceIsUsedAgain) {
  const auto int8 = Int8();
  // A short extent first, so that the kept part ends inside a chunk.
  ASSERT_OK(verifier_->Compare(*int8, DType::kF32, {.documents = 1, .tokens = 70}, nullptr));
  ASSERT_OK_AND_ASSIGN(const VerificationResult first,
                       verifier_->Compare(*int8, DType::kF32, {}, nullptr));
  ASSERT_OK_AND_ASSIGN(const VerificationResult second,
                       verifier_->Compare(*int8, DType::kF32, {}, nullptr));
  EXPECT_GT(first.mean_kl.mean, 0);
  EXPECT_EQ(first.mean_kl.mean, second.mean_kl.mean);
  EXPECT_EQ(first.perplexity_reference, second.perplexity_reference);
  auto fresh = Verifier::Create(*source_, set_, pool_).value();
  ASSERT_OK_AND_ASSIGN(const VerificationResult third,
                       fresh->Compare(*int8, DType::kF32, {}, nullptr));
  EXPECT_EQ(first.mean_kl.mean, third.mean_kl.mean);
}

TEST_F(VerifierTest, ADecodePathThatDiffersFromPrefillIsADefect) {
  for (const float bias : {0.1f, std::numeric_limits<float>::quiet_NaN()}) {
    const OffInDecode off(reference_, bias);
    ASSERT_OK_AND_ASSIGN(const VerificationResult result,
                         verifier_->Compare(off, DType::kF32, {}, nullptr));
    EXPECT_LT(result.kl_max, 1e-12) << bias;  // prefill shows nothing
    EXPECT_GT(result.decode_kl_max, 1e-6) << bias;
    EXPECT_THAT(result.defects, ElementsAre(HasSubstr("decoding step by step disagrees"))) << bias;
  }
}

TEST_F(VerifierTest, OutputSqnrIsMeasuredForEverySlot) {
  ASSERT_OK_AND_ASSIGN(const auto sqnr, OutputSqnr(Int8()->linears()));
  EXPECT_EQ(sqnr.size(), reference_->slots().size());
  for (const auto& [name, db] : sqnr) {
    EXPECT_GT(db, 20) << name;  // 8 bits: about 40 dB; far less would be a broken layer
    EXPECT_LT(db, 60) << name;
  }
  ASSERT_OK_AND_ASSIGN(const auto exact, OutputSqnr(reference_->linears()));
  for (const auto& [name, db] : exact) EXPECT_EQ(db, 200) << name;
}

TEST_F(VerifierTest, SingleLayersCostLessThanAllOfThem) {
  const auto int8 = Int8();
  const ModelFamily* family = FamilyOf(*checkpoint_).value();
  ASSERT_OK_AND_ASSIGN(const auto sqnr, OutputSqnr(int8->linears()));
  ASSERT_OK_AND_ASSIGN(const auto ranking, RankLayers({*family, reference_->spec(), *checkpoint_,
                                                       *source_, int8->linears(), sqnr},
                                                      *verifier_, 6, nullptr));
  ASSERT_THAT(ranking, SizeIs(6));
  ASSERT_OK_AND_ASSIGN(const VerificationResult all,
                       verifier_->Compare(*int8, DType::kF32, {}, nullptr));
  for (size_t i = 0; i < ranking.size(); ++i) {
    EXPECT_GT(ranking[i].loss, 0);
    EXPECT_LT(ranking[i].loss, all.mean_kl.mean);
    if (i > 0) {
      EXPECT_LE(ranking[i].loss, ranking[i - 1].loss);
    }
  }
}

TEST(BudgetTest, EveryFigureOutsideIsASentence) {
  VerificationResult result;
  result.mean_kl = {0.02, 0.01, 0.03};
  result.top1_agreement = {0.9, 0.9, 0.9};
  result.perplexity_ratio = 1.2;
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kGenerate),
              ElementsAre(HasSubstr("mean KL 0.02"), HasSubstr("top-1 agreement 90"),
                          HasSubstr("perplexity ratio 1.2")));
  result.mean_kl = {0.008, 0.007, 0.0099};
  result.top1_agreement = {0.96, 0.9, 1};
  result.perplexity_ratio = 1.001;
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kGenerate), IsEmpty());
  result.mean_kl = {0.008, 0.005, 0.011};  // the mean is inside, its interval is not
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kGenerate), SizeIs(1));
  result.mean_kl.high = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kGenerate), SizeIs(1));
  result.mean_kl = {0.008, 0.007, 0.0099};
  result.mean_kl_bootstrap = {0.008, 0.0075, 0.0101};  // the farther bound counts
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kGenerate), SizeIs(1));
  result.documents = 2;
  result.documents_in_set = 8;
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kGenerate),
              ElementsAre(HasSubstr("after 2 of 8 documents")));
  result.cosine = result.cosine_bootstrap = {0.996, 0.9955, 0.9965};
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kEmbed), IsEmpty());
  result.cosine.low = 0.994;
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kEmbed), SizeIs(1));
  result.label_agreement = 0.98;
  EXPECT_THAT(CheckBudget(result, {}, ModelTask::kClassify), SizeIs(1));
}

TEST(BudgetTest, EachBoundIsWhereTheBudgetPutsIt) {
  const Budget budget;
  VerificationResult at;  // exactly on every bound
  at.mean_kl = {budget.max_mean_kl / 2, 0, budget.max_mean_kl};
  at.top1_agreement = {budget.min_top1, 0, 1};
  at.perplexity_ratio = budget.max_perplexity_ratio;
  at.cosine = at.cosine_bootstrap = {1, budget.min_mean_cosine, 1};
  at.label_agreement = budget.min_label_agreement;
  at.mean_kl_bootstrap = at.mean_kl;
  at.cosine_bootstrap = at.cosine;
  const auto failures = [&](ModelTask task, const std::function<void(VerificationResult&)>& spoil) {
    VerificationResult beyond = at;
    spoil(beyond);
    return CheckBudget(beyond, budget, task);
  };
  constexpr double kStep = 1e-6;
  for (const ModelTask task : {ModelTask::kGenerate, ModelTask::kEmbed, ModelTask::kClassify}) {
    EXPECT_THAT(failures(task, [](auto&) {}), IsEmpty());
  }
  EXPECT_THAT(failures(ModelTask::kGenerate, [](auto& r) { r.mean_kl.high += kStep; }), SizeIs(1));
  EXPECT_THAT(failures(ModelTask::kGenerate, [](auto& r) { r.top1_agreement.mean -= kStep; }),
              SizeIs(1));
  EXPECT_THAT(failures(ModelTask::kGenerate, [](auto& r) { r.perplexity_ratio += kStep; }),
              SizeIs(1));
  EXPECT_THAT(failures(ModelTask::kEmbed, [](auto& r) { r.cosine.low -= kStep; }), SizeIs(1));
  EXPECT_THAT(failures(ModelTask::kEmbed, [](auto& r) { r.cosine_bootstrap.low -= kStep; }),
              SizeIs(1));
  EXPECT_THAT(failures(ModelTask::kClassify, [](auto& r) { r.label_agreement -= kStep; }),
              SizeIs(1));
}

TEST(BudgetTest, AFigureThatIsNotANumberIsOutside) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  VerificationResult good;
  good.mean_kl = {0.001, 0.001, 0.001};
  good.top1_agreement = {0.99, 0.99, 0.99};
  good.perplexity_ratio = 1;
  good.cosine = good.cosine_bootstrap = {0.999, 0.999, 0.999};
  good.label_agreement = 1;
  const auto failures = [&](ModelTask task, const std::function<void(VerificationResult&)>& spoil) {
    EXPECT_THAT(CheckBudget(good, {}, task), IsEmpty());
    VerificationResult bad = good;
    spoil(bad);
    return CheckBudget(bad, {}, task);
  };
  EXPECT_THAT(failures(ModelTask::kGenerate, [](auto& r) { r.mean_kl.high = kNan; }),
              ElementsAre(HasSubstr("mean KL")));
  EXPECT_THAT(failures(ModelTask::kGenerate, [](auto& r) { r.top1_agreement.mean = kNan; }),
              ElementsAre(HasSubstr("top-1 agreement")));
  EXPECT_THAT(failures(ModelTask::kGenerate, [](auto& r) { r.perplexity_ratio = kNan; }),
              ElementsAre(HasSubstr("perplexity ratio")));
  EXPECT_THAT(failures(ModelTask::kEmbed, [](auto& r) { r.cosine.low = kNan; }),
              ElementsAre(HasSubstr("mean cosine")));
  EXPECT_THAT(failures(ModelTask::kGenerate, [](auto& r) { r.mean_kl_bootstrap.high = kNan; }),
              ElementsAre(HasSubstr("mean KL")));
  EXPECT_THAT(failures(ModelTask::kClassify, [](auto& r) { r.label_agreement = kNan; }),
              ElementsAre(HasSubstr("label agreement")));
}

TEST(EarlyStopTest, RejectsTheHopelessAndAcceptsTheEvident) {
  const Verifier::EarlyStop both{.max_mean_kl = 0.01, .accept = true};
  EXPECT_TRUE(DecidesEarly(both, {0.05, 0.041, 0.06}, 2, 8));
  EXPECT_FALSE(DecidesEarly(both, {0.05, 0.041, 0.06}, 1, 8));  // one document has no interval
  EXPECT_FALSE(DecidesEarly(both, {0.05, 0.039, 0.06}, 2, 8));  // perhaps not four times as much
  EXPECT_FALSE(DecidesEarly(both, {0.05, 0.041, 0.06}, 8, 8));  // nothing is left to be saved
  EXPECT_TRUE(DecidesEarly(both, {0.006, 0.004, 0.008}, 4, 8));
  EXPECT_FALSE(DecidesEarly(both, {0.006, 0.0035, 0.0085}, 4, 8));  // 0.006 + 2 * 0.0025
  EXPECT_FALSE(DecidesEarly(both, {0.006, 0.004, 0.008}, 5, 8));    // not one of the two looks
  EXPECT_FALSE(DecidesEarly(both, {0.006, 0.006, 0.006}, 2, 8));    // too few
  EXPECT_FALSE(DecidesEarly({.max_mean_kl = 0.01}, {0.006, 0.004, 0.008}, 4, 8));
  EXPECT_FALSE(DecidesEarly({.max_mean_kl = 0.01, .reject = false}, {0.05, 0.041, 0.06}, 2, 8));
  const double nan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(DecidesEarly(both, {nan, nan, nan}, 4, 8));
}

TEST(EarlyStopTest, ALadderGivesUpSooner) {
  const Estimate twice = {0.03, 0.021, 0.039}, near = {0.02, 0.019, 0.021};
  EXPECT_FALSE(DecidesEarly({.max_mean_kl = 0.01}, twice, 3, 8));
  EXPECT_TRUE(DecidesEarly({.max_mean_kl = 0.01, .hopeless = 2}, twice, 3, 8));
  EXPECT_FALSE(DecidesEarly({.max_mean_kl = 0.01, .hopeless = 2}, near, 3, 8));
}

TEST_F(VerifierTest, AHopelessCandidateStopsEarlyAndSaysSo) {
  ASSERT_OK_AND_ASSIGN(const EvaluationSet set,
                       MakeEvaluationSet(BundledEvaluationText(), "bundled", tokenizer_.get(),
                                         reference_->spec(), {.documents = 6, .window = 80}));
  ASSERT_OK_AND_ASSIGN(const auto verifier, Verifier::Create(*source_, set, pool_));
  const auto int8 = Int8();
  ASSERT_OK_AND_ASSIGN(const VerificationResult whole,
                       verifier->Compare(*int8, DType::kF32, {}, nullptr));
  EXPECT_EQ(whole.documents, whole.documents_in_set);
  EXPECT_GT(whole.decode_positions, 0);
  EXPECT_EQ(whole.figures.positions, whole.tokens);
  EXPECT_NEAR(whole.figures.perplexity_ratio.value, whole.perplexity_ratio, 1e-12);
  EXPECT_LE(whole.mean_kl_bootstrap.low, whole.mean_kl.mean);
  // A budget far below what INT8 costs, and the same comparison with one that it keeps to.
  const auto compare = [&](double max_mean_kl) {
    return verifier->Compare(*int8, DType::kF32,
                             {.early = Verifier::EarlyStop{.max_mean_kl = max_mean_kl}}, nullptr);
  };
  ASSERT_OK_AND_ASSIGN(const VerificationResult hopeless, compare(1e-9));
  EXPECT_GE(hopeless.documents, 2);
  EXPECT_LT(hopeless.documents, 6);
  EXPECT_EQ(hopeless.documents_in_set, 6);
  EXPECT_EQ(hopeless.decode_positions, 0);
  EXPECT_THAT(CheckBudget(hopeless, {.max_mean_kl = 1e-9}, ModelTask::kGenerate),
              testing::Contains(HasSubstr("of 6 documents")));
  ASSERT_OK_AND_ASSIGN(const VerificationResult good, compare(1));
  EXPECT_EQ(good.documents, 6);
}

TEST(FallbackTest, KeepsTheFewestLayersThatSuffice) {
  const std::vector<LayerImpact> ranking = {{"a", 0.5}, {"b", 0.3}, {"c", 0.1}};
  EXPECT_EQ(LayersToKeep(ranking, 1.0, 0.6, 3), 1);
  EXPECT_EQ(LayersToKeep(ranking, 1.0, 0.4, 3), 2);
  EXPECT_EQ(LayersToKeep(ranking, 1.0, 0.0, 3), 3);
  EXPECT_EQ(LayersToKeep(ranking, 1.0, 0.0, 2), 2);  // never above the limit
  EXPECT_EQ(LayersToKeep(ranking, 0.1, 0.5, 3), 1);  // something failed: at least one
  EXPECT_EQ(LayersToKeep({}, 1.0, 0.0, 3), 0);
}

TEST(FallbackTest, TheLimitCountsLinearLayersOnly) {
  std::vector<LinearSlot> slots(121);
  slots[0].kind = LinearSlot::Kind::kEmbedding;
  EXPECT_EQ(MaxFallbackLayers(slots, 0.2), 24);
  EXPECT_EQ(MaxFallbackLayers(slots, 0), 0);
  EXPECT_EQ(MaxFallbackLayers(slots, 1), 120);
}

QuantizedLinear Linear(const QuantizedTensor& tensor) {
  return QuantizedLinear::Create(tensor, Tensor(), {}).value();
}

TEST(WeightCheckTest, AcceptsEverySchemeAndFindsOneWrongCode) {
  ThreadPool pool({.num_threads = 2});
  const Tensor weight = RandomTensor({130, 96}, 7);
  const QuantizedLinear exact = Linear(FindScheme("f32").value()->Encode(weight.view()).value());
  for (const QuantScheme* scheme : AllSchemes()) {
    QuantizedTensor tensor = scheme->Encode(weight.view()).value();
    ASSERT_OK_AND_ASSIGN(const WeightCheck good,
                         CheckServedWeight(exact, Linear(tensor), CodesBy::kNearest, pool));
    EXPECT_EQ(good.defect, "") << std::string(scheme->name());
    // A bit is 6 dB; the least of the schemes, symmetric 3 bit, has about 11.
    const double least_db = scheme->bits_per_weight({130, 96}) > 8 ? 24 : 8;
    EXPECT_GT(good.sqnr_db, least_db) << std::string(scheme->name());
  }
  QuantizedTensor tensor = FindScheme("int8_channel").value()->Encode(weight.view()).value();
  tensor.codes.data<int8_t>()[97 * 96 + 5] ^= 0x08;
  ASSERT_OK_AND_ASSIGN(const WeightCheck bad,
                       CheckServedWeight(exact, Linear(tensor), CodesBy::kNearest, pool));
  EXPECT_THAT(bad.defect, HasSubstr("row=97"));
}

// Half of the columns a hundredth of the others: rotated, all codes are alike, and turned back
// their noise is far more than what rounding the small columns would give.
TEST(WeightCheckTest, RotatedWeightsAreComparedRotated) {
  ThreadPool pool({.num_threads = 2});
  Tensor weight = RandomTensor({70, 64}, 5);
  for (int64_t i = 0; i < 70 * 64; ++i)
    if (i % 64 < 32) weight.data<float>()[i] *= 0.01f;
  const QuantizedLinear exact = Linear(FindScheme("f32").value()->Encode(weight.view()).value());
  const QuantScheme& scheme = *FindScheme("int4_group:g32").value();
  const HadamardRotation rotation = HadamardRotation::Create(64, 7).value();
  Tensor rotated = RandomTensor({70, 64}, 5);
  std::copy_n(weight.data<float>(), 70 * 64, rotated.data<float>());
  rotation.RotateRows({rotated.data<float>(), 70 * 64});
  QuantizedTensor tensor = scheme.Encode(rotated.view()).value();
  ASSERT_OK(WriteInputRotation(rotation, tensor));
  const auto check = [&] {
    return CheckServedWeight(exact, Linear(tensor), CodesBy::kNearest, pool).value();
  };
  EXPECT_EQ(check().defect, "");
  EXPECT_GT(check().sqnr_db, 15);  // four bits
  auto* codes = tensor.codes.data<uint8_t>();
  std::swap_ranges(codes + 12 * 32, codes + 12 * 32 + 16, codes + 12 * 32 + 16);
  EXPECT_THAT(check().defect, HasSubstr("row=12"));
  std::swap_ranges(codes + 12 * 32, codes + 12 * 32 + 16, codes + 12 * 32 + 16);
  // Codes of the weight as it was, marked as rotated: another layer's rotation, in effect.
  tensor = scheme.Encode(weight.view()).value();
  ASSERT_OK(WriteInputRotation(rotation, tensor));
  EXPECT_THAT(check().defect, HasSubstr("stored weight disagrees"));
}

// A large weight 80 rows further down sets the scale of all: what small rows lose to it is no
// defect.
TEST(WeightCheckTest, RowsThatShareAScaleAreComparedTogether) {
  ThreadPool pool({.num_threads = 2});
  Tensor weight = RandomTensor({200, 128}, 5);
  for (int64_t i = 0; i < 64 * 128; ++i) weight.data<float>()[i] *= 0.002f;
  weight.data<float>()[90 * 128 + 3] = 400;
  const QuantizedLinear exact = Linear(FindScheme("f32").value()->Encode(weight.view()).value());
  for (const char* name : {"fp8_e4m3:block", "fp8_e4m3:tensor", "fp8_e5m2:block", "nvfp4"}) {
    QuantizedTensor tensor = FindScheme(name).value()->Encode(weight.view()).value();
    const auto check = [&] {
      return CheckServedWeight(exact, Linear(tensor), CodesBy::kNearest, pool).value().defect;
    };
    EXPECT_EQ(check(), "") << name;
    auto* row = tensor.codes.data<uint8_t>() + 150 * tensor.codes.shape()[1];
    std::reverse(row, row + tensor.codes.shape()[1]);
    EXPECT_THAT(check(), HasSubstr("row=150")) << name;
  }
}

TEST(WeightCheckTest, AMethodMayMoveCodesButNotAWholeBlock) {
  ThreadPool pool({.num_threads = 2});
  const Tensor weight = RandomTensor({70, 96}, 5);
  const QuantizedLinear exact = Linear(FindScheme("f32").value()->Encode(weight.view()).value());
  const QuantScheme& scheme = *FindScheme("int8_group:g32").value();
  const auto defect = [&](const QuantizedTensor& tensor, CodesBy codes = CodesBy::kMethod) {
    return CheckServedWeight(exact, Linear(tensor), codes, pool).value().defect;
  };
  // Clipped to half of its range, everywhere: far from nearest, and legitimate.
  const std::vector<float> half(70 * 3, 0.5f);
  QuantizedTensor clipped =
      scheme.EncodeOn(weight.view(), scheme.Fit(weight.view(), {half}).value()).value();
  EXPECT_EQ(defect(clipped), "");
  QuantizedTensor doubled = scheme.Encode(weight.view()).value();
  EXPECT_EQ(defect(doubled), "");
  doubled.scales.data<uint16_t>()[41 * 3 + 1] += 0x80;  // bf16: the exponent
  EXPECT_THAT(defect(doubled), HasSubstr("row=41 columns=32..64"));
  EXPECT_THAT(defect(doubled, CodesBy::kFeedback), HasSubstr("row=41 columns=32..64"));
  QuantizedTensor swapped = scheme.Encode(weight.view()).value();
  auto* codes = swapped.codes.data<int8_t>();
  std::swap_ranges(codes + 12 * 96, codes + 12 * 96 + 32, codes + 12 * 96 + 32);
  EXPECT_THAT(defect(swapped), HasSubstr("row=12 columns="));
  EXPECT_EQ(defect(swapped, CodesBy::kFeedback), "");  // GPTQ may do that: the gate decides
  QuantizedTensor negated = scheme.Encode(weight.view()).value();
  for (int j = 64; j < 96; ++j) {
    int8_t& code = negated.codes.data<int8_t>()[69 * 96 + j];
    code = static_cast<int8_t>(-code);
  }
  EXPECT_THAT(defect(negated), HasSubstr("row=69 columns=64..96"));
}

}  // namespace
}  // namespace assay
