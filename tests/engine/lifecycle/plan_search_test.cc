#include "engine/lifecycle/plan_search.h"

#include <cmath>

#include "engine/lifecycle/verifier.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::Each;
using testing::Gt;
using testing::HasSubstr;
using testing::Not;
using testing::SizeIs;

class PlanSearchTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(Stories260k()));
    ASSERT_OK_AND_ASSIGN(family_, FamilyOf(*checkpoint_));
    ASSERT_OK_AND_ASSIGN(reference_, BuildUniform(*checkpoint_, "f32", {}));
    source_ = std::make_unique<StreamedLayers>(*family_, reference_->spec(), *checkpoint_, pool_);
    set_.samples = RandomDocuments({.documents = 2, .tokens = 96}, reference_->spec().vocab, 3);
  }
  SearchInputs inputs() {
    return {*family_, *checkpoint_,
            *source_, set_,
            pool_,    [](const LinearSlot& slot) { return slot.kind == LinearSlot::Kind::kLinear; },
            nullptr};
  }
  // Mean KL of the whole model in the chosen candidates, on the search's own samples.
  double MeasuredKl(const SearchTable& table, const std::vector<int>& choice) {
    LinearMap linears = reference_->linears();
    for (size_t i = 0; i < table.slots.size(); ++i) {
      const PlanCandidate& candidate = table.candidates[i][static_cast<size_t>(choice[i])];
      const Tensor weight = ReadSlotWeight(*checkpoint_, table.slots[i]).value();
      const QuantizedTensor codes =
          FindScheme(candidate.scheme).value()->Encode(weight.view()).value();
      linears[table.slots[i].name] = std::make_shared<const QuantizedLinear>(
          QuantizedLinear::Create(codes, Tensor{}, {.activation = candidate.activation}).value());
    }
    const auto model = family_->build(reference_->spec(), *checkpoint_, std::move(linears)).value();
    const EvaluationSet set{.documents = set_.samples};
    const auto verifier = Verifier::Create(*source_, set, pool_).value();
    return verifier->Compare(*model, DType::kF32, {.decode_path = false}, nullptr)->mean_kl.mean;
  }
  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<const Checkpoint> checkpoint_;
  const ModelFamily* family_ = nullptr;
  std::shared_ptr<const Model> reference_;
  std::unique_ptr<const LayerSource> source_;
  CalibrationSet set_;
};

TEST_F(PlanSearchTest, MoreBitsCostBytesAndSaveErrorInEveryLayer) {
  ASSERT_OK_AND_ASSIGN(
      const SearchTable table,
      MeasureCandidates(inputs(), {{"int4_group:g32"}, {"int8_channel"}, {"f32"}}));
  EXPECT_THAT(table.slots, SizeIs(20));  // 5 layers of qkv, o, gate-up and down
  for (size_t i = 0; i < table.slots.size(); ++i) {
    const std::vector<PlanOption>& o = table.problem[i];
    ASSERT_THAT(o, SizeIs(3)) << table.slots[i].name;
    EXPECT_LT(o[0].bytes, o[1].bytes);
    EXPECT_LT(o[1].bytes, o[2].bytes);
    EXPECT_EQ(o[2].bytes, static_cast<uint64_t>(table.slots[i].shape.elements()) * 4);
    EXPECT_GT(o[0].error, 10 * o[1].error) << table.slots[i].name;  // 4 bits more: 24 dB, 250x
    EXPECT_EQ(o[2].error, 0);
    EXPECT_FALSE(o[1].fallback);
    EXPECT_TRUE(o[2].fallback);
    for (const PlanOption& option : o) EXPECT_GT(option.seconds, 0);
  }
}

// The model of the error: sums of layers predict the whole within a factor of two, for a plan of
// one candidate and for a mixed one. (Sampling is the same; the rest is that layers interact.)
TEST_F(PlanSearchTest, ThePredictionIsAboutRight) {
  ASSERT_OK_AND_ASSIGN(const SearchTable table,
                       MeasureCandidates(inputs(), {{"int4_group:g32"}, {"int8_group"}}));
  const std::vector<int> four(table.slots.size(), 0);
  std::vector<int> mixed;
  for (size_t i = 0; i < table.slots.size(); ++i) mixed.push_back(static_cast<int>(i % 2));
  for (const std::vector<int>& choice : {four, mixed}) {
    double predicted = 0;
    for (size_t i = 0; i < choice.size(); ++i) {
      predicted += table.problem[i][static_cast<size_t>(choice[i])].error;
    }
    const double measured = MeasuredKl(table, choice);
    EXPECT_GT(predicted, measured / 2) << measured;
    EXPECT_LT(predicted, measured * 2) << measured;
  }
}

// What the search is for: at the bytes of half the layers in 8 bit, its choice of layers is better
// than the first and last ones, and than the opposite of its choice.
TEST_F(PlanSearchTest, ItsChoiceBeatsFirstAndLastAtEqualBytes) {
  ASSERT_OK_AND_ASSIGN(const SearchTable table,
                       MeasureCandidates(inputs(), {{"int4_group:g32"}, {"int8_group"}}));
  std::vector<int> ends(table.slots.size(), 0);
  uint64_t bytes = 0;
  for (size_t i = 0; i < table.slots.size(); ++i) {
    ends[i] = table.slots[i].layer == 0 || table.slots[i].layer == 4 ? 1 : 0;
    bytes += table.problem[i][static_cast<size_t>(ends[i])].bytes;
  }
  ASSERT_OK_AND_ASSIGN(const PlanPoint chosen, SolvePlan(table.problem, {.max_bytes = bytes}));
  EXPECT_LE(chosen.bytes, bytes);
  EXPECT_LT(MeasuredKl(table, chosen.choice), MeasuredKl(table, ends));
}

TEST_F(PlanSearchTest, TheSameInputGivesTheSameTable) {
  ASSERT_OK_AND_ASSIGN(const SearchTable a, MeasureCandidates(inputs(), {{"int4_group:g32"}}));
  ASSERT_OK_AND_ASSIGN(const SearchTable b, MeasureCandidates(inputs(), {{"int4_group:g32"}}));
  for (size_t i = 0; i < a.problem.size(); ++i) {
    EXPECT_EQ(a.problem[i][0].error, b.problem[i][0].error);
    EXPECT_EQ(a.problem[i][0].bytes, b.problem[i][0].bytes);
  }
}

TEST_F(PlanSearchTest, WhatCannotBeIsSaid) {
  EXPECT_THAT(MeasureCandidates(inputs(), {{"int9"}}),
              StatusIs(StatusCode::kNotFound, HasSubstr("int9")));
  EXPECT_THAT(MeasureCandidates(inputs(), {}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("layers.0")));
  auto stopped = inputs();
  stopped.progress = [](double) { return absl::UnavailableError("shutting down"); };
  EXPECT_THAT(MeasureCandidates(stopped, {{"int4_group:g32"}}), StatusIs(StatusCode::kUnavailable));
}

}  // namespace
}  // namespace assay
