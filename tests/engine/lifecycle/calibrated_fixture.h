// Admissions of the bundled decoder with recipes of a test's own, under a budget that lets four
// bits pass.
#pragma once
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {

// Four-bit codes of a model this small are far from its f32: the budget is not what is tested.
inline constexpr char kLoosePolicy[] =
    "version: 1\n"
    "recipes: {plain: {scheme: int8_channel}}\n"
    "budgets: {loose: {mean_kl: 2, top1: 0.2, perplexity_ratio: 5}}\n"
    "rules: [{name: any, reason: test, when: {device: cpu}, recipe: plain, budget: loose}]\n";

class CalibratedAdmissionTest : public AdmissionFixture {
 protected:
  void Start(AdmissionOptions options, AdmissionHooks hooks = {}) {
    hooks.evaluation = EvaluationSize{.documents = 3, .window = 96};
    AdmissionFixture::Start(std::move(options), std::move(hooks));
  }
  AdmissionOptions Loose() const {
    AdmissionOptions options;
    options.policy = Policy::Parse(kLoosePolicy, "test").value();
    return options;
  }
  std::string Recipe(const std::string& yaml) const {
    return directory_.Write("recipe.yaml", "embedding: int8_channel\n" + yaml);
  }
  AdmissionRequest Request(const std::string& yaml) const {
    return {.name = "stories", .path = Stories260k(), .recipe = Recipe(yaml), .dry_run = true};
  }
};

}  // namespace assay
