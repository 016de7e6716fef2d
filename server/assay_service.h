// assay.v1 (proto/assay/v1/assay.proto). Thread-safe; every RPC is a reactor on gRPC's threads.
#pragma once
#include <functional>

#include "proto/assay/v1/assay.grpc.pb.h"
#include "server/admin.h"
#include "server/service_context.h"

namespace assay {

class AssayServiceImpl final : public assay::v1::AssayService::CallbackService {
 public:
  AssayServiceImpl(ServiceContext& context, Admin& admin) : context_(context), admin_(admin) {}

  using Context = grpc::CallbackServerContext;
  using Unary = grpc::ServerUnaryReactor;
  grpc::ServerWriteReactor<assay::v1::GenerateResponse>* Generate(
      Context* context, const assay::v1::GenerateRequest* request) override;
  Unary* Embed(Context* context, const assay::v1::EmbedRequest* request,
               assay::v1::EmbedResponse* response) override;
  Unary* Tokenize(Context* context, const assay::v1::TokenizeRequest* request,
                  assay::v1::TokenizeResponse* response) override;
  Unary* Detokenize(Context* context, const assay::v1::DetokenizeRequest* request,
                    assay::v1::DetokenizeResponse* response) override;
  grpc::ServerWriteReactor<assay::v1::AdmitProgress>* Admit(
      Context* context, const assay::v1::AdmitRequest* request) override;
  Unary* ListModels(Context* context, const assay::v1::ListModelsRequest* request,
                    assay::v1::ListModelsResponse* response) override;
  Unary* GetReport(Context* context, const assay::v1::GetReportRequest* request,
                   assay::v1::GetReportResponse* response) override;
  Unary* ExplainPolicy(Context* context, const assay::v1::ExplainPolicyRequest* request,
                       assay::v1::ExplainPolicyResponse* response) override;
  Unary* GetDrift(Context* context, const assay::v1::GetDriftRequest* request,
                  assay::v1::GetDriftResponse* response) override;
  Unary* ListEvents(Context* context, const assay::v1::ListEventsRequest* request,
                    assay::v1::ListEventsResponse* response) override;
  // server/version_service.cc
  Unary* SetCanaryShare(Context* context, const assay::v1::SetCanaryShareRequest* request,
                        assay::v1::ModelLabels* response) override;
  Unary* Promote(Context* context, const assay::v1::PromoteRequest* request,
                 assay::v1::ModelLabels* response) override;
  Unary* RollBack(Context* context, const assay::v1::RollBackRequest* request,
                  assay::v1::ModelLabels* response) override;
  Unary* DropCanary(Context* context, const assay::v1::DropCanaryRequest* request,
                    assay::v1::ModelLabels* response) override;

 private:
  // Answers with what `work` says: bounded as inference is, by the gate and the client's quota,
  // where its text belongs (TextWorkers), and not at all once nobody waits for it.
  Unary* RunOnText(Context* context, size_t bytes, std::function<absl::Status()> work);

  ServiceContext& context_;
  Admin& admin_;
};

}  // namespace assay
