// Admissions, loads and unloads on behalf of clients. What may block (an unload waits for the last
// request of a model) runs on one worker thread of its own, so that gRPC's threads never wait.
// Thread-safe.
#pragma once
#include <deque>
#include <functional>
#include <string>
#include <thread>

#include "server/service_context.h"

namespace assay {

class Admin {
 public:
  explicit Admin(ServiceContext& context);
  ~Admin();  // finishes the job under way, drops the rest
  Admin(const Admin&) = delete;
  Admin& operator=(const Admin&) = delete;

  // PermissionDenied when administration by RPC is off; Unavailable when draining.
  absl::Status CheckAllowed() const;
  // Admits `request`. Errors as AdmissionPipeline::Enqueue. `sink` is called on the admission
  // thread.
  absl::StatusOr<int64_t> Admit(const AdmissionRequest& request, ProgressSink sink);
  // Admits a model of the repository by name. AlreadyExists: that version serves already.
  absl::StatusOr<int64_t> Load(const std::string& model, const std::string& scheme,
                               ProgressSink sink);
  // Unloads all versions; `done` is called on the worker thread.
  void Unload(const std::string& model, std::function<void(absl::Status)> done)
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Loop() ABSL_LOCKS_EXCLUDED(mu_);

  ServiceContext& context_;
  Mutex mu_;
  CondVar wake_;
  std::deque<std::function<void()>> jobs_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace assay
