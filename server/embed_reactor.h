// assay.v1 Embed: several texts or token sequences, one answer.
#pragma once
#include <memory>
#include <vector>

#include "proto/assay/v1/assay.pb.h"
#include "server/reactors.h"
#include "server/request_record.h"
#include "server/sequence_group.h"

namespace assay {

class EmbedReactor final : public SelfOwned<grpc::ServerUnaryReactor> {
 public:
  EmbedReactor(ServiceContext& context, const assay::v1::EmbedRequest& request,
               assay::v1::EmbedResponse* response, Caller caller);
  void OnCancel() override;

 private:
  absl::Status Open(ServiceContext& context, const assay::v1::EmbedRequest& request);
  absl::Status Prepare(const assay::v1::EmbedRequest& request);
  void Submit();
  void AllEnded(const absl::Status& status);

  const Clock& clock_;
  const Caller caller_;
  grpc::CallbackServerContext* const rpc_ = caller_.rpc;
  const absl::Time arrival_ = clock_.Now();
  const absl::Time deadline_ = DeadlineOf(*rpc_, clock_);
  assay::v1::EmbedResponse* const response_;
  std::unique_ptr<RequestRecord> record_;
  const size_t window_;
  Progress progress_ = Progress::kChecked;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<EncodeResult> results_;  // each written by the engine's loop thread, once
  SequenceGroup group_;
};

}  // namespace assay
