#include "server/admin_reactors.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

assay::v1::AdmitProgress ToProto(const AdmissionProgress& progress) {
  assay::v1::AdmitProgress out;
  out.set_name(progress.name);
  out.set_version(progress.version);
  out.set_stage(progress.stage);
  out.set_fraction(progress.fraction);
  out.set_message(progress.message);
  out.set_done(progress.done);
  if (progress.done && progress.report != nullptr) {
    out.set_verdict(progress.report->verdict);
    out.set_report_json(ToJson(*progress.report).dump());
    out.set_report_text(ToTerminalText(*progress.report, 100));
  }
  return out;
}

}  // namespace

absl::Status AdmissionOutcome(const AdmissionProgress& progress) {
  if (progress.status.ok() || progress.report == nullptr || progress.report->reason.empty()) {
    return progress.status;
  }
  if (progress.status.message().find(progress.report->reason) != std::string::npos) {
    return progress.status;
  }
  return {progress.status.code(),
          absl::StrCat(progress.status.message(), ": ", progress.report->reason)};
}

std::function<void(absl::Status)> DeferredReactor::Completion() {
  return [link = link_](const absl::Status& status) {
    link->With([&status](DeferredReactor& reactor) { reactor.Complete(status); });
  };
}

void DeferredReactor::Complete(const absl::Status& status) {
  if (!complete_.exchange(true)) Finish(ToGrpc(status, rpc_));
}

void DeferredReactor::OnCancel() {
  Complete(absl::CancelledError("the client went away; the work goes on"));
}

void DeferredReactor::OnDone() {
  link_->Cut();
  delete this;
}

AdmitReactor::AdmitReactor(Admin& admin, const assay::v1::AdmitRequest& request,
                           grpc::CallbackServerContext* rpc)
    : rpc_(rpc) {
  AdmissionRequest admission;
  admission.name = request.name();
  admission.version = request.version();
  admission.path = request.path();
  admission.scheme = request.scheme();
  admission.recipe = request.recipe();
  admission.calibration = request.calibration();
  admission.dry_run = request.dry_run();
  admission.canary_share = request.canary_share();
  const absl::StatusOr<int64_t> version =
      admin.Admit(admission, [link = link_](const AdmissionProgress& progress) {
        link->With([&progress](AdmitReactor& reactor) { reactor.Push(progress); });
      });
  if (!version.ok()) End(version.status());
}

void AdmitReactor::Push(const AdmissionProgress& progress) {
  {
    MutexLock lock(mu_);
    if (ended_) return;
    // A message of the same stage that still waits is out of date.
    const bool replaces = !queue_.empty() && queue_.back().stage() == progress.stage;
    if (replaces) queue_.pop_back();
    queue_.push_back(ToProto(progress));
    if (progress.done) {
      ended_ = true;
      end_ = AdmissionOutcome(progress);
    }
  }
  Pump();
}

void AdmitReactor::End(const absl::Status& status) {
  {
    MutexLock lock(mu_);
    ended_ = true;
    end_ = status;
  }
  Pump();
}

void AdmitReactor::Pump() {
  bool write = false, finish = false;
  absl::Status end;
  {
    MutexLock lock(mu_);
    if (writing_ || finished_) return;
    if (!queue_.empty()) {
      writing_message_ = std::move(queue_.front());
      queue_.pop_front();
      write = writing_ = true;
    } else if (ended_) {
      finish = finished_ = true;
      end = end_;
    }
  }
  if (write) StartWrite(&writing_message_);
  if (finish) Finish(ToGrpc(end, rpc_));
}

void AdmitReactor::OnWriteDone(bool ok) {
  {
    MutexLock lock(mu_);
    writing_ = false;
    if (!ok) {
      queue_.clear();
      ended_ = true;
    }
  }
  Pump();
}

void AdmitReactor::OnCancel() {
  {
    MutexLock lock(mu_);
    queue_.clear();
    ended_ = true;
    end_ = absl::CancelledError("the client went away; the admission goes on");
  }
  Pump();
}

void AdmitReactor::OnDone() {
  link_->Cut();
  delete this;
}

}  // namespace assay
