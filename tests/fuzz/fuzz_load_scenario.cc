// A scenario of the load generator, a zero byte, recorded arrivals.
#include "loadtest/scenario.h"
#include "loadtest/schedule.h"
#include "tests/fuzz/require.h"

namespace assay::load {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

void Exercise(const Scenario& scenario) {
  Require(!scenario.kinds.empty() && !scenario.phases.empty(), "requests and phases");
  Scenario faster = scenario;
  Scale(faster, 2.5);
  for (size_t phase = 0; phase < scenario.phases.size(); ++phase) {
    const double offered = OfferedRate(scenario.phases[phase], 10);
    Require(offered >= 0, "an offered rate");
    // More would be honest work, and nothing new.
    if (offered * absl::ToDoubleSeconds(scenario.phases[phase].duration) > 1000) continue;
    RequireCode(PlanPhase(scenario, phase, 10).status(), absl::StatusCode::kResourceExhausted);
  }
}

}  // namespace
}  // namespace assay::load

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const assay::Halves halves = assay::SplitAtZero(assay::TextOf(data, size));
  const auto scenario = assay::load::ParseScenario(halves.first, "fuzz.yaml", "/nonexistent");
  assay::RequireCode(scenario.status(), assay::load::kInvalid, absl::StatusCode::kNotFound);
  if (scenario.ok()) assay::load::Exercise(*scenario);
  const std::vector<assay::load::RequestKind> kinds(1, {.name = "a", .model = "m"});
  const auto arrivals = assay::load::ParseArrivals(halves.second, "fuzz.txt", kinds);
  assay::RequireCode(arrivals.status(), assay::load::kInvalid);
  for (size_t i = 1; arrivals.ok() && i < arrivals->size(); ++i) {
    assay::Require((*arrivals)[i - 1].offset_us <= (*arrivals)[i].offset_us, "ascending");
  }
  return 0;
}
