// One ModelInferRequest on its way through an engine, for the unary and the streaming RPC alike:
// checks, tokenizes, submits every row, joins the rows into responses.
//
// Thread rule: Start and Cancel from gRPC's threads, the sink is called from Start (a refused
// request) or from the engine's loop thread. The sink gets exactly one event with `last`, at the
// end, and may destroy the job then only on another thread; whoever owns the job keeps it until
// that event, and destroys it on a gRPC thread (the job may hold the last reference to a model,
// whose engine cannot be destroyed by its own loop).
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/request_parameters.h"
#include "server/request_record.h"
#include "server/sequence_group.h"
#include "server/tensor_codec.h"

namespace assay {

struct InferEvent {
  absl::Status status;                     // of the request, when last
  inference::ModelInferResponse response;  // none in an event with an error
  bool last = false;
};
using InferSink = std::function<void(InferEvent&&)>;

struct InferOptions {
  absl::Time deadline = absl::InfiniteFuture();
  bool can_stream = false;  // the RPC can carry several responses
  RequestOrigin origin;
};

class InferJob {
 public:
  InferJob(ServiceContext& context, InferOptions options, InferSink sink)
      : context_(context), options_(options), sink_(std::move(sink)) {}

  // Reads `request` until it calls `taken`, on this or another thread. The job may be over, and
  // gone, by then.
  void Start(const inference::ModelInferRequest& request, const std::function<void()>& taken);
  void Cancel();

 private:
  struct Row {
    std::vector<int32_t> tokens;
    bool charged = false;  // for them, to the client
    // text generation
    std::string text;
    FinishReason reason = FinishReason::kStop;
    Usage usage;
    // encoders
    EncodeResult encoded;
  };

  absl::Status Open(const inference::ModelInferRequest& request);
  void Submit();
  absl::Status Prepare(const inference::ModelInferRequest& request);
  absl::Status ReadTexts(const InputView& input);
  absl::Status ReadTokenIds(const InputView& ids, const InputView* mask);
  absl::Status CheckRequestedOutputs(const inference::ModelInferRequest& request);
  absl::StatusOr<SequenceId> SubmitGenerate(size_t row);
  absl::StatusOr<SequenceId> SubmitEncode(size_t row);
  void Charge(Row& row, size_t generated);
  void OnToken(size_t row, TokenEvent&& event);
  void AllEnded(const absl::Status& status);
  void Finish(const absl::Status& status);

  inference::ModelInferResponse NewResponse() const;
  inference::ModelInferResponse LastResponse();
  void AddEncoderOutputs(inference::ModelInferResponse& response) const;
  RequestTimes Times() const;
  bool Wants(std::string_view output) const;

  ServiceContext& context_;
  const absl::Time arrival_ = context_.clock.Now();
  const InferOptions options_;
  InferSink sink_;
  std::string id_;
  RequestParameters parameters_;
  std::vector<std::string> outputs_;  // asked for; empty = all
  std::vector<int64_t> shape_;        // of text_input; [rows] or [rows, 1]
  bool streams_ = false;              // one response per piece of text
  Progress progress_ = Progress::kChecked;
  int responses_ = 0;
  std::vector<Row> rows_;  // set before submission; each then belongs to the engine's loop thread
  SequenceGroup group_;
  std::unique_ptr<RequestRecord> record_;
};

std::string_view Name(FinishReason reason);  // "stop", "length", ...

}  // namespace assay
