// Input drift of a real model, against figures that are worked out by other means.
#include "engine/lifecycle/input_drift.h"

#include <gmock/gmock.h>

#include <cmath>

#include "base/thread_pool.h"
#include "engine/lifecycle/calibrate.h"
#include "engine/lifecycle/model_pass.h"
#include "engine/lifecycle/slot_parts.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr float kStep = 0.02f;  // of the static scale: inputs within 2.54

class InputDriftTest : public testing::Test {
 protected:
  InputDriftTest() {
    checkpoint_ = OpenCheckpoint(Stories260k()).value();
    dynamic_ = BuildUniform(*checkpoint_, "int8_channel", {.activation = ActivationMode::kA8Token})
                   .value();
    const ModelFamily* family = FamilyOf(*checkpoint_).value();
    static_ = Static(*family, ActivationMode::kA8Tensor);
    mixed_ = Static(*family, ActivationMode::kA8Mix);
  }

  std::shared_ptr<const Model> Static(const ModelFamily& family, ActivationMode mode) {
    LinearMap linears = dynamic_->linears();
    for (const LinearSlot& slot : dynamic_->slots()) {
      if (slot.kind != LinearSlot::Kind::kLinear) continue;
      const Tensor weight = ReadSlotWeight(*checkpoint_, slot).value();
      QuantizedTensor codes = FindScheme("int8_channel").value()->Encode(weight.view()).value();
      EXPECT_OK(WriteActivationParams({.scale = kStep}, mode, codes));
      linears[slot.name] = std::make_shared<const QuantizedLinear>(
          QuantizedLinear::Create(codes, Tensor(), {.activation = mode}).value());
    }
    return family.build(dynamic_->spec(), *checkpoint_, std::move(linears)).value();
  }

  // What a pass over the tokens shows, row by row.
  using Rows = std::map<std::string, std::vector<float>, std::less<>>;
  Rows Pass(const Model& model, std::span<const int32_t> tokens, InputProfile* profile) {
    Rows rows;
    const LinearObserver keep = [&](const LinearSlot& slot, TensorView x, TensorView) {
      std::vector<float>& values = rows[slot.name];
      values.insert(values.end(), x.as<float>(), x.as<float>() + x.shape.elements());
    };
    const auto length = static_cast<int>(tokens.size());
    ModelPass pass =
        ModelPass::Create(model, {.context = length, .rows = length, .out_rows = length}, pool_)
            .value();
    const ModelPass::Span span{0, 0, tokens};
    EXPECT_OK(pass.Forward(std::span(&span, 1), true, &keep));
    if (profile != nullptr) {
      const LinearObserver observer = profile->observer();
      EXPECT_OK(pass.Forward(std::span(&span, 1), true, &observer));
    }
    return rows;
  }
  std::vector<int32_t> Tokens(int count) {
    std::vector<int32_t> tokens{1};
    while (static_cast<int>(tokens.size()) < count)
      tokens.push_back(3 + (next_ = (next_ * 1103515245u + 12345u) % 2147483648u) % 500);
    return tokens;
  }
  // As verification would leave it.
  static AdmissionReport ReportOf(const InputProfile& profile) {
    AdmissionReport report;
    for (const auto& [name, slot] : profile.slots()) {
      const InputSummary summary = Summarize(slot);
      report.layers.push_back({.name = name,
                               .input_absmax = summary.absmax,
                               .input_saturation = summary.saturation,
                               .input_outliers = summary.outliers});
    }
    return report;
  }
  void Serve(InputDrift& drift, const Model& model, int requests) {
    for (int i = 0; i < requests; ++i) {
      const std::vector<int32_t> tokens = Tokens(24);
      Pass(model, tokens, &drift.profile());
      drift.Add(tokens);
    }
  }
  AdmissionReport Admitted(const Model& model) {
    InputProfile profile(model);
    for (int i = 0; i < 40; ++i) Pass(model, Tokens(24), &profile);
    return ReportOf(profile);
  }

  ThreadPool pool_{{.num_threads = 1}};
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<const Model> dynamic_, static_, mixed_;
  uint32_t next_ = 1;
};

TEST_F(InputDriftTest, AProfileHasTheLargestOfEachChannelAndWhatIsCutOff) {
  InputProfile profile(*static_);
  const std::vector<int32_t> tokens = Tokens(40);
  const Rows rows = Pass(*static_, tokens, &profile);
  int64_t any_cut = 0;
  for (const auto& [name, slot] : profile.slots()) {
    const std::vector<float>& values = rows.at(name);
    const size_t k = slot.absmax.size();
    std::vector<float> absmax(k);
    int64_t cut = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      absmax[i % k] = std::max(absmax[i % k], std::fabs(values[i]));
      cut += values[i] > 127.5f * kStep || values[i] < -128.5f * kStep ? 1 : 0;
    }
    EXPECT_EQ(slot.absmax, absmax) << name;
    if (!slot.range.has_value()) continue;  // the head
    EXPECT_EQ(slot.values, static_cast<int64_t>(values.size())) << name;
    EXPECT_EQ(slot.cut, cut) << name;
    any_cut += cut;
  }
  EXPECT_GT(any_cut, 100);  // the scale is too small on purpose
}

TEST_F(InputDriftTest, WhereOnlyDecodeStepsAreStaticOnlyTheseAreCounted) {
  InputProfile profile(*mixed_);
  profile.set_first_decode_row(30);
  Pass(*mixed_, Tokens(40), &profile);
  for (const auto& [name, slot] : profile.slots()) {
    if (!slot.range.has_value()) continue;
    EXPECT_EQ(slot.values, 10 * static_cast<int64_t>(slot.absmax.size())) << name;
  }
}

TEST_F(InputDriftTest, MergedProfilesAreOneOfBoth) {
  InputProfile both(*static_), first(*static_), second(*static_);
  const std::vector<int32_t> a = Tokens(20), b = Tokens(33);
  for (const auto& tokens : {a, b}) Pass(*static_, tokens, &both);
  Pass(*static_, a, &first);
  Pass(*static_, b, &second);
  first.Merge(second);
  for (const auto& [name, slot] : both.slots()) {
    EXPECT_EQ(first.slots().at(name).absmax, slot.absmax);
    EXPECT_EQ(first.slots().at(name).cut, slot.cut);
    EXPECT_EQ(first.slots().at(name).values, slot.values);
  }
}

TEST_F(InputDriftTest, OutliersStandOutSixfold) {
  InputProfile::Slot slot;
  slot.absmax = {1, 0.5f, 6, 5.9f, 1, 1, 20};
  EXPECT_THAT(Summarize(slot).outliers, ElementsAre(2, 6));
  EXPECT_EQ(Summarize(slot).absmax, 20);
  slot.absmax = {0, 0, 0};
  EXPECT_THAT(Summarize(slot).outliers, IsEmpty());
}

TEST_F(InputDriftTest, TheSameKindOfInputIsNotShifted) {
  for (const auto& model : {dynamic_, static_}) {
    InputDrift drift(Admitted(*model), *model);
    Serve(drift, *model, 200);
    EXPECT_FALSE(drift.status().shifted) << drift.status().cause;
    EXPECT_EQ(drift.status().requests, 200);
    ASSERT_TRUE(drift.status().range.has_value());
    EXPECT_LT(*drift.status().range, 1.5);
    EXPECT_GT(*drift.status().range, 0.8);
    EXPECT_EQ(drift.status().saturation.has_value(), model == static_);
  }
}

TEST_F(InputDriftTest, TooLittleSaysNothing) {
  InputDrift drift(Admitted(*static_), *static_);
  Serve(drift, *static_, InputDrift::kFewest - 1);
  EXPECT_FALSE(drift.status().range.has_value());
  EXPECT_FALSE(drift.status().saturation.has_value());
  Serve(drift, *static_, 1);
  EXPECT_TRUE(drift.status().range.has_value());
}

// Admitted on text where nothing is cut off, so a few per mille are news.
TEST_F(InputDriftTest, WhatStaticScalesCutOffIsSeenAndNamesTheLayer) {
  AdmissionReport report = Admitted(*static_);
  for (LayerReport& layer : report.layers) layer.input_saturation = 0;
  InputDrift drift(report, *static_);
  Serve(drift, *static_, 40);
  EXPECT_TRUE(drift.status().shifted);
  EXPECT_THAT(drift.status().cause, HasSubstr("static scales cut off"));
  EXPECT_THAT(drift.status().cause, HasSubstr(drift.status().saturated_layer));
  EXPECT_GT(*drift.status().saturation, 0.001);
}

TEST_F(InputDriftTest, InputsThatReachFartherAreSeen) {
  AdmissionReport report = Admitted(*dynamic_);
  const std::string& name = report.layers[3].name;
  report.layers[3].input_absmax /= 4;  // so that now is 4 times as far
  InputDrift drift(report, *dynamic_);
  Serve(drift, *dynamic_, 40);
  EXPECT_TRUE(drift.status().shifted);
  EXPECT_EQ(drift.status().range_layer, name);
  EXPECT_NEAR(*drift.status().range, 4, 1);
  EXPECT_THAT(drift.status().cause, HasSubstr(name));
}

TEST_F(InputDriftTest, OtherOutlierChannelsAreSeen) {
  AdmissionReport report = Admitted(*dynamic_);
  for (LayerReport& layer : report.layers) layer.input_outliers = {1, 4, 9};
  InputDrift drift(report, *dynamic_);
  Serve(drift, *dynamic_, InputDrift::kWindow - 1);
  EXPECT_FALSE(drift.status().outlier_overlap.has_value());  // too little was seen
  Serve(drift, *dynamic_, 2);
  ASSERT_TRUE(drift.status().outlier_overlap.has_value());
  EXPECT_LT(*drift.status().outlier_overlap, 0.33);
  EXPECT_TRUE(drift.status().shifted);
}

// One channel more or less is luck where there are so few.
TEST_F(InputDriftTest, AFewOutlierChannelsAreNotJudged) {
  AdmissionReport report = Admitted(*dynamic_);
  for (LayerReport& layer : report.layers) layer.input_outliers.clear();
  report.layers[3].input_outliers = {1, 4, 9};
  InputDrift drift(report, *dynamic_);
  Serve(drift, *dynamic_, InputDrift::kWindow + 1);
  EXPECT_FALSE(drift.status().outlier_overlap.has_value());
  EXPECT_FALSE(drift.status().shifted) << drift.status().cause;
}

TEST_F(InputDriftTest, AReportOfAnotherModelIsNoBaselineAndNoCrash) {
  AdmissionReport report;
  report.layers.push_back({.name = "somewhere else", .input_absmax = 1});
  report.layers.push_back(
      {.name = dynamic_->slots()[1].name, .input_absmax = 1e9, .input_outliers = {-1, 1 << 30}});
  InputDrift drift(report, *dynamic_);
  Serve(drift, *dynamic_, 40);
  EXPECT_FALSE(drift.status().shifted) << drift.status().cause;
}

}  // namespace
}  // namespace assay
