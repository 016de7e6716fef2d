#include "server/admin.h"

#include <malloc.h>

#include "absl/strings/str_cat.h"
#include "quant/policy/recipe_list.h"
#include "server/model_repository.h"

namespace assay {

absl::Status Admin::CheckOpen() const {
  if (context_.gate.closed()) return absl::UnavailableError("the server is draining");
  return absl::OkStatus();
}

absl::StatusOr<int64_t> Admin::Admit(AdmissionRequest request, ProgressSink sink) {
  RETURN_IF_ERROR(CheckOpen());
  if (!request.name.empty() && !IsModelName(request.name)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", request.name, "' is not a model name: expected letters, digits, '.', '_', '-'"));
  }
  if (request.path.empty())
    return absl::InvalidArgumentError("the path of the checkpoint is empty");
  ASSIGN_OR_RETURN(request.path, paths_.Resolve(request.path));
  if (!request.calibration.empty()) {
    ASSIGN_OR_RETURN(request.calibration, paths_.Resolve(request.calibration));
  }
  if (IsRecipePath(request.recipe)) {
    ASSIGN_OR_RETURN(request.recipe, paths_.ResolveRecipe(request.recipe));
  }
  return context_.admissions.Enqueue(std::move(request), std::move(sink));
}

absl::StatusOr<int64_t> Admin::Load(const std::string& model, const std::string& scheme,
                                    ProgressSink sink) {
  RETURN_IF_ERROR(CheckOpen());
  ASSIGN_OR_RETURN(const RepositoryEntry entry,
                   FindInRepository(context_.config.model_repository, model));
  AdmissionRequest request;
  request.name = entry.name;
  request.version = entry.version;
  ASSIGN_OR_RETURN(request.path, paths_.ResolveEntry(entry.path));
  request.scheme = scheme;
  return context_.admissions.Enqueue(std::move(request), std::move(sink));
}

void Admin::Unload(const std::string& model, const std::function<void(absl::Status)>& done) {
  absl::Status status = CheckOpen();
  if (status.ok()) {
    status = context_.registry.BeginUnload(model, /*version=*/0, [done] {
      malloc_trim(0);  // small pieces of the model go back to the system, too
      done(absl::OkStatus());
    });
  }
  if (!status.ok()) done(status);
}

}  // namespace assay
