#include "server/admin.h"

#include <malloc.h>

#include "absl/strings/str_cat.h"
#include "server/model_repository.h"

namespace assay {

Admin::Admin(ServiceContext& context) : context_(context), thread_([this] { Loop(); }) {}

Admin::~Admin() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  wake_.NotifyAll();
  thread_.join();
}

absl::Status Admin::CheckAllowed() const {
  if (!context_.config.admin_allowed()) {
    return absl::PermissionDeniedError(
        "administration by RPC is off: set 'admin: true' where the server is configured");
  }
  if (context_.gate.closed()) return absl::UnavailableError("the server is draining");
  return absl::OkStatus();
}

absl::StatusOr<int64_t> Admin::Admit(const AdmissionRequest& request, ProgressSink sink) {
  RETURN_IF_ERROR(CheckAllowed());
  if (!request.name.empty() && !IsModelName(request.name)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", request.name, "' is not a model name: expected letters, digits, '.', '_', '-'"));
  }
  if (request.path.empty())
    return absl::InvalidArgumentError("the path of the checkpoint is empty");
  return context_.admissions.Enqueue(request, std::move(sink));
}

absl::StatusOr<int64_t> Admin::Load(const std::string& model, const std::string& scheme,
                                    ProgressSink sink) {
  RETURN_IF_ERROR(CheckAllowed());
  ASSIGN_OR_RETURN(const RepositoryEntry entry,
                   FindInRepository(context_.config.model_repository, model));
  AdmissionRequest request;
  request.name = entry.name;
  request.version = entry.version;
  request.path = entry.path;
  request.scheme = scheme;
  return context_.admissions.Enqueue(std::move(request), std::move(sink));
}

void Admin::Unload(const std::string& model, std::function<void(absl::Status)> done) {
  const absl::Status allowed = CheckAllowed();
  if (!allowed.ok()) return done(allowed);
  {
    MutexLock lock(mu_);
    jobs_.push_back([this, model, done = std::move(done)] {
      const absl::Status status = context_.registry.Unload(model, /*version=*/0);
      malloc_trim(0);  // small pieces of the model go back to the system, too
      done(status);
    });
  }
  wake_.NotifyOne();
}

void Admin::Loop() {
  for (;;) {
    std::function<void()> job;
    {
      MutexLock lock(mu_);
      while (jobs_.empty() && !stop_) wake_.Wait(mu_);
      if (stop_) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
    }
    job();
  }
}

}  // namespace assay
