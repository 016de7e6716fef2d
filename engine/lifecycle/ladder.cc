#include "engine/lifecycle/ladder.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/sha256.h"
#include "engine/lifecycle/fallback.h"

namespace assay {
namespace {

size_t Rungs(const Admission& a) { return a.report.decision.ladder.rungs.size(); }

// Where it is measured: kernels differ.
std::string DeviceOf(const Admission& a) {
  const HardwareInfo& hardware = a.report.hardware;
  for (size_t i = 0; i < hardware.gpus.size(); ++i) {
    if (a.report.decision.device != absl::StrCat("cuda:", i)) continue;
    return absl::StrCat(hardware.gpus[i].name, " sm_", hardware.gpus[i].compute_capability);
  }
  return hardware.cpu_isa;
}

// What the outcome depends on. Texts by name only: a remembered rung is where the climb begins, its
// certificate proves it.
std::string KeyOf(const Admission& a) {
  nlohmann::json rungs = nlohmann::json::array();
  for (const Recipe& recipe : a.report.decision.ladder.rungs) rungs.push_back(ToJson(recipe));
  return Sha256Hex(absl::StrCat(
      a.report.source_hash, "\n", rungs.dump(), "\n", ToJson(a.report.decision.budget).dump(), "\n",
      a.host.options.evaluation_path, "\n", a.host.options.calibration_path, "\n",
      a.request.calibration, "\n", DeviceOf(a), "\n", ASSAY_VERSION));
}

RungReport DescribeRung(const Admission& a, const absl::Status& status) {
  const AdmissionReport& report = a.report;
  RungReport rung{.recipe = report.decision.recipe.name,
                  .reason = report.reason.empty() ? std::string(status.message()) : report.reason,
                  .measured = report.verification.documents > 0,
                  .bytes_stored = report.bytes_stored};
  if (rung.measured) rung.loss = LossEstimate(report.verification, a.spec.task);
  for (const StageReport& stage : report.stages) rung.elapsed += stage.elapsed;
  return rung;
}

}  // namespace

void TakeRung(Admission& a) {
  PolicyDecision& decision = a.report.decision;
  if (a.rung.has_value() && *a.rung >= Rungs(a)) a.rung = 0;  // another device's rule, shorter
  if (!a.rung.has_value()) {
    a.rung = 0;
    if (Rungs(a) > 1) {
      if (std::optional<RememberedRung> earlier = a.host.cache.FindRung(KeyOf(a));
          earlier.has_value() && earlier->rung < Rungs(a)) {
        a.rung = earlier->rung;
        a.remembered = true;
        a.report.rungs = std::move(earlier->tried);
      }
    }
  }
  decision.recipe = decision.ladder.rungs[*a.rung];
  if (*a.rung > 0) {
    decision.trace.push_back(absl::StrCat(
        "recipe ", decision.recipe.name, ": ",
        a.remembered ? "an earlier admission ended with it" : "the ones before it did not pass"));
  }
}

bool HasNextRung(const Admission& a) {
  if (*a.rung + 1 >= Rungs(a)) return false;
  const double limit = a.report.decision.ladder.seconds;
  return limit == 0 || a.host.clock.Now() - a.climb_began < absl::Seconds(limit);
}

bool ClimbsOn(const Admission& a, const absl::Status& status) {
  if (status.ok() || absl::IsUnavailable(status)) return false;  // served; shutting down
  if (!a.rung.has_value() || !a.report.verification.defects.empty()) return false;
  return a.remembered || HasNextRung(a);
}

std::unique_ptr<Admission> NextAttempt(std::unique_ptr<Admission> a, const absl::Status& status) {
  auto next =
      std::make_unique<Admission>(Admission{.host = a->host, .request = std::move(a->request)});
  next->climb_began = a->climb_began;
  next->allocated_before = a->allocated_before;
  next->metrics = a->metrics;
  next->report.measured_peak_bytes = a->report.measured_peak_bytes;
  // What was right once may not be on this host or text: then from the beginning.
  next->rung = a->remembered ? 0 : *a->rung + 1;
  if (!a->remembered) next->report.rungs = std::move(a->report.rungs);
  next->report.rungs.push_back(DescribeRung(*a, status));
  Log(LogLevel::kInfo, "recipe did not pass, trying another",
      {{"model", next->request.name},
       {"recipe", next->report.rungs.back().recipe},
       {"reason", next->report.rungs.back().reason},
       {"next", a->report.decision.ladder.rungs[*next->rung].name}});
  return next;
}

void RememberRung(const Admission& a) {
  if (Rungs(a) < 2 || a.remembered) return;
  a.host.cache.StoreRung(KeyOf(a), {.rung = *a.rung, .tried = a.report.rungs});
}

}  // namespace assay
