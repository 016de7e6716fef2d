// Admissions, loads and unloads on behalf of clients. Nothing here blocks: an unload waits for the
// last request of its model on the registry's threads, so gRPC's never wait. Thread-safe.
#pragma once
#include <functional>
#include <string>

#include "server/model_paths.h"
#include "server/service_context.h"

namespace assay {

class Admin {
 public:
  explicit Admin(ServiceContext& context) : context_(context), paths_(context.config) {}
  Admin(const Admin&) = delete;
  Admin& operator=(const Admin&) = delete;

  absl::Status CheckOpen() const;  // Unavailable: draining
  // Admits `request`. PermissionDenied: it names a file outside of the roots (ModelPaths); other
  // errors as AdmissionPipeline::Enqueue. `sink` is called on the admission
  // thread.
  absl::StatusOr<int64_t> Admit(AdmissionRequest request, ProgressSink sink);
  // Admits a model of the repository by name. AlreadyExists: that version serves already.
  // PermissionDenied: a link of it leads out of the roots.
  absl::StatusOr<int64_t> Load(const std::string& model, const std::string& scheme,
                               ProgressSink sink);
  // Unloads all versions; `done` is called when their memory is free, on a thread of the registry,
  // or at once when there is nothing to wait for.
  void Unload(const std::string& model, const std::function<void(absl::Status)>& done);

 private:
  ServiceContext& context_;
  const ModelPaths paths_;
};

}  // namespace assay
