#include "server/version_control.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace assay {
namespace {

// How far above the measured mean the true one may lie. With 20 requests and losses as scattered as
// tests/quant/sequential_test.cc has them, a version at twice its limit passes in 1.5 % of all
// cases, one at three times in 0.1 %; one at a quarter of it in 94 %.
constexpr double kStandardErrors = 2;

// Whether admission proved it.
absl::Status CheckGate(const VersionInfo& version) {
  const AdmissionReport* report = version.report.get();
  const auto name = absl::StrCat("version ", version.version, " of model '", version.name, "'");
  if (report == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("not promoted: ", name, " has no admission report"));
  }
  const VerificationResult& v = report->verification;
  if (report->verdict == "admitted" && v.failures.empty() && v.defects.empty()) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("not promoted: the gate did not pass ", name, ": verdict=", report->verdict,
                   " failures=", v.failures.size(), " defects=", v.defects.size()));
}

std::optional<DriftStatus> Find(const std::vector<DriftStatus>& all, const std::string& model,
                                int64_t version) {
  for (const DriftStatus& status : all) {
    if (status.model == model && status.version == version) return status;
  }
  return std::nullopt;
}

}  // namespace

std::string DriftFigures(const DriftStatus& status) {
  return absl::StrFormat("%s %.3g of %.3g allowed after %d requests", status.statistic,
                         status.score, status.limit, status.samples);
}

void VersionControl::Watch() {
  registry_.OnLabelChange([this](const LabelChange& change) {
    metrics_.VersionChanged(change.change);
    const bool warns =
        change.change == VersionChange::kRollBack || change.change == VersionChange::kDrop;
    events_.Add({.level = warns ? LogLevel::kWarning : LogLevel::kInfo,
                 .model = change.model,
                 .version = change.version,
                 .kind = "action",
                 .reason = absl::StrCat(std::string(Name(change.change)), ": ", change.reason)});
  });
}

absl::Status VersionControl::SetShare(const std::string& model, double share) {
  if (!(share >= 0 && share <= 1)) {  // NaN, too
    return absl::InvalidArgumentError(
        absl::StrCat("a canary's share of the requests is 0 to 1: share=", share));
  }
  return registry_.SetCanaryShare(model, share);
}

DriftState VersionControl::StateOf(const std::string& model, int64_t version) const {
  const std::optional<DriftStatus> status = Find(drift_.List(), model, version);
  return status.has_value() ? status->state : DriftState::kOk;
}

absl::Status VersionControl::CheckDrift(const std::string& model, int64_t version) const {
  const std::optional<DriftStatus> status = Find(drift_.List(), model, version);
  if (status.has_value()) return CheckDrift(*status);
  return absl::FailedPreconditionError(absl::StrCat(
      "not promoted: drift.rate is 0, so no request of version ", version, " of model '", model,
      "' was compared with its reference: expected=", options_.promote_min_samples));
}

absl::Status VersionControl::CheckDrift(const DriftStatus& status) const {
  const std::string name =
      absl::StrCat("version ", status.version, " of model '", status.model, "'");
  if (status.state != DriftState::kOk) {
    return absl::FailedPreconditionError(absl::StrCat("not promoted: drift of ", name, " is ",
                                                      std::string(Name(status.state)),
                                                      ", not OK: ", DriftFigures(status)));
  }
  if (!status.error.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "not promoted: nothing can be compared any more for ", name, ": error=", status.error));
  }
  if (status.samples < options_.promote_min_samples) {
    return absl::FailedPreconditionError(absl::StrCat(
        "not promoted: too few requests of ", name, " were compared with its reference: compared=",
        status.samples, " expected=", options_.promote_min_samples));
  }
  // OK says only that nothing is proven against it; a handful of requests proves little.
  const double likely = status.score + kStandardErrors * status.standard_error;
  if (likely <= status.limit) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrFormat(
      "not promoted: %s is not known to be below its limit yet: %s=%.5f standard_error=%.5f "
      "limit=%.5f: %s",
      name, status.statistic, status.score, status.standard_error, status.limit,
      DriftFigures(status)));
}

absl::Status VersionControl::Promote(const std::string& model, bool force) {
  ASSIGN_OR_RETURN(const VersionLabels labels, registry_.Labels(model));
  const int64_t canary = labels.canary;
  if (canary == 0) {
    return absl::FailedPreconditionError(absl::StrCat("model '", model, "' has no canary version"));
  }
  ASSIGN_OR_RETURN(const VersionInfo version, registry_.Find(model, canary));
  RETURN_IF_ERROR(CheckGate(version));
  const absl::Status drift = CheckDrift(model, canary);
  if (!drift.ok() && !force) return drift;
  std::string reason = absl::StrCat("forced, although ", std::string(drift.message()));
  if (drift.ok()) {
    const std::optional<DriftStatus> status = Find(drift_.List(), model, canary);
    reason = status.has_value() ? "drift OK, " + DriftFigures(*status) : "drift OK";
  }
  return registry_.Promote(model, canary, reason);
}

absl::Status VersionControl::RollBack(const std::string& model, int64_t expected,
                                      std::string_view reason) {
  return registry_.RollBack(model, expected, reason);
}

absl::Status VersionControl::Drop(const std::string& model, int64_t expected,
                                  std::string_view reason) {
  return registry_.DropCanary(model, expected, reason);
}

void VersionControl::Compared(const DriftStatus& status) {
  if (!options_.auto_promote || !CheckDrift(status).ok()) return;
  const absl::StatusOr<VersionLabels> labels = registry_.Labels(status.model);
  // A share of 0 says that somebody wants it to wait.
  if (!labels.ok() || labels->canary != status.version || labels->canary_share <= 0) return;
  const absl::StatusOr<VersionInfo> version = registry_.Find(status.model, status.version);
  if (!version.ok() || !CheckGate(*version).ok()) return;
  // An error: it was dropped or replaced meanwhile, which is an event of its own.
  registry_
      .Promote(status.model, status.version,
               "versions.auto_promote, drift OK, " + DriftFigures(status))
      .IgnoreError();
}

}  // namespace assay
