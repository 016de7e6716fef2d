// Admission where the recipe leaves the choice of every layer's scheme to it.
#include <algorithm>
#include <iostream>

#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

// Only KL binds, at a value that all in 4 bit miss and all in 8 bit keep.
constexpr char kPolicy[] =
    "version: 1\nrecipes: {r: {scheme: int8_channel, activation: a16}}\n"
    "budgets: {b: {mean_kl: 0.03, top1: 0, perplexity_ratio: 1000}}\n"
    "rules: [{name: only, reason: test, when: {device: cpu}, recipe: r, budget: b}]\n";

class SearchAdmissionTest : public AdmissionFixture {
 protected:
  void Start(AdmissionOptions options) {
    options.policy = Policy::Parse(kPolicy, "test").value();
    AdmissionFixture::Start(std::move(options));
  }
  AdmissionProgress AdmitAs(const std::string& yaml) {
    const std::string path = directory_.Write("search.yaml", yaml);
    return Admit({.name = "stories", .path = Stories260k(), .recipe = path});
  }
  static std::string Recipe(const std::string& search, const std::string& more = "") {
    return "activation: a16\nsearch: {candidates: [\"int4_group:g32\", \"int8_group:g32\", bf16]" +
           search + "}\n" + more;
  }
  static uint64_t ChoiceBytes(const AdmissionReport& report) {
    for (const CandidateReport& c : report.candidates) {
      if (c.chosen) return c.bytes;
    }
    return 0;
  }
};

TEST_F(SearchAdmissionTest, ThePlanIsMixedVerifiedAndExplained) {
  Start(Cached());
  const AdmissionProgress end = AdmitAs(Recipe(""));
  ASSERT_OK(end.status);
  const AdmissionReport& report = *end.report;
  std::set<std::string> schemes;
  for (const LayerReport& layer : report.layers) {
    schemes.insert(layer.scheme);
    EXPECT_THAT(layer.why, HasSubstr("chosen of 3")) << layer.name;
  }
  EXPECT_TRUE(schemes.contains("int4_group:g32"));
  EXPECT_TRUE(schemes.contains("int8_group:g32"));
  EXPECT_LE(report.verification.mean_kl.high, report.decision.budget.max_mean_kl);
  EXPECT_LE(report.fallback_fraction, 0.2);
  const auto chosen = std::count_if(report.candidates.begin(), report.candidates.end(),
                                    [](const CandidateReport& c) { return c.chosen; });
  EXPECT_EQ(chosen, 1);
  EXPECT_THAT(stages_, Contains("search"));
}

TEST_F(SearchAdmissionTest, TheBuiltInPlanIsRoundedByAwqAndGptq) {
  Start({});
  const AdmissionProgress end = Admit({.name = "stories", .path = Stories260k(), .recipe = "auto"});
  ASSERT_OK(end.status);
  EXPECT_FALSE(end.report->folds.empty());
  int judged = 0;
  for (const LayerReport& layer : end.report->layers)
    judged += layer.why.find("output error 0.") != std::string::npos ? 1 : 0;
  EXPECT_EQ(judged, 20);  // all but the table
}

TEST_F(SearchAdmissionTest, APlanWithNothingToRescaleIsOne) {
  Start({});
  const AdmissionProgress end = AdmitAs(
      "activation: a16\ntransforms: [awq]\nkeep: [\"model.layers.*\"]\n"
      "search: {candidates: [int8_channel]}\n"
      "fallback: {scheme: bf16, activation: a16, max_fraction: 1}\n");
  ASSERT_OK(end.status);
  EXPECT_TRUE(end.report->folds.empty());
}

TEST_F(SearchAdmissionTest, TheSameInputGivesTheSameArtifactAndTheCacheKeepsThePlan) {
  Start(Cached());
  const AdmissionProgress first = AdmitAs(Recipe(""));
  ASSERT_OK(first.status);
  const AdmissionProgress again = AdmitAs(Recipe(""));
  ASSERT_OK(again.status);
  EXPECT_THAT(stages_, Not(Contains("search")));
  EXPECT_TRUE(again.report->certificate_hit);
  EXPECT_EQ(again.report->candidates.size(), first.report->candidates.size());
  Start({});  // without a cache: all anew
  const AdmissionProgress anew = AdmitAs(Recipe(""));
  ASSERT_OK(anew.status);
  ASSERT_EQ(anew.report->layers.size(), first.report->layers.size());
  for (size_t i = 0; i < anew.report->layers.size(); ++i) {
    EXPECT_EQ(anew.report->layers[i].scheme, first.report->layers[i].scheme);
  }
}

// What a budget decided is not what another budget would have: neither finds the other's artifact.
TEST_F(SearchAdmissionTest, AnotherBudgetIsAnotherArtifact) {
  Start(Cached());
  const std::string path = directory_.Write("search.yaml", Recipe(""));
  const auto admit = [&](double max_mean_kl) {
    return Admit({.name = "stories",
                  .path = Stories260k(),
                  .recipe = path,
                  .budget = Budget{
                      .max_mean_kl = max_mean_kl, .min_top1 = 0, .max_perplexity_ratio = 1000}});
  };
  const AdmissionProgress loose = admit(0.5), tight = admit(0.01), again = admit(0.5);
  ASSERT_OK(loose.status);
  ASSERT_OK(tight.status);
  EXPECT_FALSE(tight.report->artifact_cache_hit);
  EXPECT_LE(tight.report->verification.mean_kl.high, 0.01);
  EXPECT_NE(tight.report->artifact_hash, loose.report->artifact_hash);
  EXPECT_TRUE(again.report->certificate_hit);
  EXPECT_EQ(again.report->artifact_hash, loose.report->artifact_hash);
}

TEST_F(SearchAdmissionTest, ALimitOfBytesIsForSearches) {
  Start({});
  const AdmissionProgress end = Admit(
      {.name = "stories", .path = Stories260k(), .recipe = "w8a16", .search = {.max_bytes = 1000}});
  EXPECT_THAT(end.status, StatusIs(StatusCode::kInvalidArgument,
                                   AllOf(HasSubstr("w8a16"), HasSubstr("max_bytes=1000"))));
}

TEST_F(SearchAdmissionTest, ALimitOfBytesIsKeptTo) {
  Start({});
  const uint64_t free = ChoiceBytes(*AdmitAs(Recipe("")).report);
  ASSERT_GT(free, 0u);
  // Between all in 4 bit and what the gate asked for: either the gate takes it or it says no, but
  // never at more bytes.
  const AdmissionProgress end = AdmitAs(Recipe(absl::StrCat(", max_bytes: ", free * 9 / 10)));
  ASSERT_NE(end.report, nullptr);
  for (const CandidateReport& c : end.report->candidates) {
    EXPECT_TRUE(c.predicted || c.bytes <= free * 9 / 10) << c.name;
  }
  const AdmissionProgress impossible = AdmitAs(Recipe(", max_bytes: 1000"));
  EXPECT_THAT(impossible.status,
              StatusIs(StatusCode::kFailedPrecondition,
                       AllOf(HasSubstr("max_bytes=1000"), HasSubstr("the smallest has"))));
  EXPECT_EQ(impossible.report->verdict, "rejected");
}

// The rule of thumb that the search replaces: the first and the last layer in 8 bit, the rest in 4.
TEST_F(SearchAdmissionTest, TheSearchBeatsFirstAndLastAtEqualBytes) {
  Start({});
  const AdmissionProgress rule = AdmitAs(
      "scheme: int4_group:g32\nactivation: a16\nembedding: int8_channel\n"
      "keep: [\"model.layers.0.*\", \"model.layers.4.*\"]\n"
      "fallback: {scheme: int8_channel, activation: a16, max_fraction: 0}\n");
  ASSERT_NE(rule.report, nullptr);
  uint64_t bytes = 0;
  for (const LayerReport& layer : rule.report->layers) bytes += layer.bytes_stored;
  const AdmissionProgress plan = AdmitAs(
      absl::StrCat("scheme: int4_group:g32\nactivation: a16\nembedding: int8_channel\n",
                   "search: {candidates: [\"int4_group:g32\", int8_channel], max_bytes: ", bytes,
                   "}\nfallback: {max_fraction: 0}\n"));
  ASSERT_NE(plan.report, nullptr);
  uint64_t planned = 0;
  for (const LayerReport& layer : plan.report->layers) planned += layer.bytes_stored;
  EXPECT_LE(planned, bytes);
  EXPECT_GT(plan.report->verification.mean_kl.mean, 0);
  EXPECT_LT(plan.report->verification.mean_kl.mean, rule.report->verification.mean_kl.mean);
  std::cout << "mean KL at " << bytes << " bytes: first and last "
            << rule.report->verification.mean_kl.mean << ", searched "
            << plan.report->verification.mean_kl.mean << "\n";
}

TEST_F(SearchAdmissionTest, ATighterLossTakesMoreBytes) {
  Start({});
  const AdmissionProgress loose = AdmitAs(Recipe(", max_loss: 0.01"));
  const AdmissionProgress tight = AdmitAs(Recipe(", max_loss: 0.002"));
  ASSERT_OK(tight.status);
  EXPECT_GT(ChoiceBytes(*tight.report), ChoiceBytes(*loose.report));
  EXPECT_LT(tight.report->verification.mean_kl.mean, loose.report->verification.mean_kl.mean);
}

TEST_F(SearchAdmissionTest, WhatTheRecipeKeepsHasNoChoice) {
  Start({});
  const AdmissionProgress end = AdmitAs(Recipe("", "keep: [\"model.layers.0.*\"]\n"));
  ASSERT_OK(end.status);
  for (const LayerReport& layer : end.report->layers) {
    if (layer.name.rfind("model.layers.0.", 0) == 0) {
      EXPECT_EQ(layer.scheme, "bf16") << layer.name;
      EXPECT_THAT(layer.why, HasSubstr("keeps it"));
    }
  }
}

TEST_F(SearchAdmissionTest, NoMoreFallbackThanThePolicyAllows) {
  Start({});
  // Only 3 bits or bf16: the gate would want many layers in bf16.
  const AdmissionProgress end = AdmitAs(
      "activation: a16\nsearch: {candidates: [int3_group, bf16]}\n"
      "fallback: {scheme: bf16, activation: a16, max_fraction: 0.1}\n");
  EXPECT_THAT(end.status, StatusIs(StatusCode::kFailedPrecondition));
  ASSERT_NE(end.report, nullptr);
  EXPECT_LE(end.report->fallback_fraction, 0.1);
}

TEST_F(SearchAdmissionTest, BadRecipesNameTheValue) {
  Start({});
  const std::pair<const char*, const char*> cases[] = {
      {"search: {candidates: []}", "candidates"},
      {"search: {candidates: [int9]}", "int9"},
      {"search: {candidates: [int8_channel/a99]}", "a99"},
      {"search: {candidates: [int8_channel], max_bytes: -1}", "max_bytes"},
      {"search: {candidates: [int8_channel], max_los: 1}", "max_los"},
      {"search: 3", "search"}};
  for (const auto& [yaml, named] : cases) {
    const std::string path = directory_.Write("bad.yaml", yaml);
    EXPECT_THAT(pipeline_->Enqueue({.name = "x", .path = Stories260k(), .recipe = path}, nullptr),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(named)))
        << yaml;
  }
}

// The plan follows from the calibration text: another text, another artifact.
TEST_F(SearchAdmissionTest, AnotherCalibrationTextIsAnotherArtifact) {
  Start(Cached());
  const AdmissionProgress first = AdmitAs(Recipe(""));
  ASSERT_OK(first.status);
  std::string text;
  for (int i = 0; i < 400; ++i) text += "Once upon a time there was a bird with a red hat. ";
  const std::string path = directory_.Write("other.txt", text);
  const AdmissionProgress other = Admit({.name = "stories",
                                         .path = Stories260k(),
                                         .recipe = directory_.path() + "/search.yaml",
                                         .calibration = path});
  ASSERT_NE(other.report, nullptr) << other.status;
  EXPECT_FALSE(other.report->artifact_cache_hit);
  EXPECT_THAT(stages_, Contains("search"));
  EXPECT_TRUE(AdmitAs(Recipe("")).report->artifact_cache_hit);
}

}  // namespace
}  // namespace assay
