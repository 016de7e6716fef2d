// The RPCs of assay.v1 that move the labels of versions. All are administration.
#include "server/assay_service.h"
#include "server/reactors.h"

namespace assay {
namespace {

// What the labels are after `moved`; its error otherwise.
absl::Status Answer(const ServiceContext& context, const std::string& model,
                    const absl::Status& moved, assay::v1::ModelLabels& response) {
  RETURN_IF_ERROR(moved);
  ASSIGN_OR_RETURN(const VersionLabels labels, context.registry.Labels(model));
  response.set_model(model);
  response.set_stable(labels.stable);
  response.set_canary(labels.canary);
  response.set_canary_share(labels.canary_share);
  response.set_previous(labels.previous);
  if (labels.previous != 0) {
    const absl::Duration left = labels.previous_until - context.clock.Now();
    response.set_previous_until(
        absl::FormatTime(absl::RFC3339_sec, context.calendar.Now() + left, absl::UTCTimeZone()));
  }
  return absl::OkStatus();
}

constexpr char kAsked[] = "asked for by RPC";

}  // namespace

AssayServiceImpl::Unary* AssayServiceImpl::SetCanaryShare(
    Context* context, const assay::v1::SetCanaryShareRequest* request,
    assay::v1::ModelLabels* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kAdmin)) return refused;
  absl::Status moved = admin_.CheckOpen();
  if (moved.ok()) moved = context_.versions.SetShare(request->model(), request->share());
  return Reply(context, Answer(context_, request->model(), moved, *response));
}

AssayServiceImpl::Unary* AssayServiceImpl::Promote(Context* context,
                                                   const assay::v1::PromoteRequest* request,
                                                   assay::v1::ModelLabels* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kAdmin)) return refused;
  absl::Status moved = admin_.CheckOpen();
  if (moved.ok()) moved = context_.versions.Promote(request->model(), request->force());
  return Reply(context, Answer(context_, request->model(), moved, *response));
}

AssayServiceImpl::Unary* AssayServiceImpl::RollBack(Context* context,
                                                    const assay::v1::RollBackRequest* request,
                                                    assay::v1::ModelLabels* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kAdmin)) return refused;
  absl::Status moved = admin_.CheckOpen();
  if (moved.ok()) moved = context_.versions.RollBack(request->model(), 0, kAsked);
  return Reply(context, Answer(context_, request->model(), moved, *response));
}

AssayServiceImpl::Unary* AssayServiceImpl::DropCanary(Context* context,
                                                      const assay::v1::DropCanaryRequest* request,
                                                      assay::v1::ModelLabels* response) {
  if (auto* refused = Refuse<Unary>(context_, context, Role::kAdmin)) return refused;
  absl::Status moved = admin_.CheckOpen();
  if (moved.ok()) moved = context_.versions.Drop(request->model(), 0, kAsked);
  return Reply(context, Answer(context_, request->model(), moved, *response));
}

}  // namespace assay
