#include "loadtest/calls.h"

#include <grpcpp/alarm.h>

#include <cstring>

namespace assay::load {
namespace {

int64_t MicrosecondsBetween(Instant from, Instant to) {
  return std::chrono::duration_cast<std::chrono::microseconds>(to - from).count();
}

// What all calls keep: times, counts, the context.
struct CallState {
  CallState(const Scenario& scenario, const Dispatch& dispatch, CallDone on_done)
      : kind(scenario.kinds[dispatch.planned.kind]), done(std::move(on_done)) {
    result.dispatch = dispatch;
    // From the intended moment: a request that is sent late has less time left, as its user has.
    const auto allowed = std::chrono::microseconds(
        absl::ToInt64Microseconds(kind.deadline.value_or(scenario.timeout)));
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::duration_cast<std::chrono::system_clock::duration>(
                             dispatch.intended + allowed - SteadyClock::now()));
  }

  // A piece of the answer came. True when the client now gives up.
  bool OnPiece(int64_t tokens) {
    const int64_t now = MicrosecondsBetween(result.dispatch.intended, SteadyClock::now());
    if (result.first_us < 0) {
      result.first_us = now;
    } else {
      result.gaps_us.push_back(now - result.last_us);
    }
    result.last_us = now;
    result.tokens += tokens;
    return kind.cancel_after > 0 &&
           static_cast<int>(result.gaps_us.size()) + 1 == kind.cancel_after;
  }

  void Finish(const grpc::Status& status) {
    result.end_us = MicrosecondsBetween(result.dispatch.intended, SteadyClock::now());
    result.cancelled_by_us = gave_up && status.error_code() == grpc::StatusCode::CANCELLED;
    result.status = status;
    done(std::move(result));
  }

  const RequestKind& kind;
  grpc::ClientContext context;
  CallResult result;
  bool gave_up = false;
  CallDone done;
};

template <typename Request, typename Response>
struct UnaryCall : CallState {
  using CallState::CallState;
  Request request;
  Response response;
};

// How streams of both protocols are read: at once, or with a pause before each message for slow
// clients. `Reactor` is the reactor of gRPC; it deletes itself.
template <typename Reactor, typename Response>
class ReadingCall : public Reactor {
 public:
  ReadingCall(const Scenario& scenario, const Dispatch& dispatch, CallDone done)
      : state_(scenario, dispatch, std::move(done)) {}

  void OnReadDone(bool ok) override {
    if (!ok) {
      if (slow()) this->RemoveHold();
      return;
    }
    const int64_t tokens = TokensOf(response_);
    if (tokens >= 0 && state_.OnPiece(tokens)) {
      state_.gave_up = true;
      state_.context.TryCancel();
    }
    if (!slow()) return this->StartRead(&response_);
    // A new alarm each time: the last one's callback may still be on its way out.
    pause_ = std::make_unique<grpc::Alarm>();
    pause_->Set(std::chrono::system_clock::now() +
                    std::chrono::milliseconds(absl::ToInt64Milliseconds(state_.kind.reader_delay)),
                [this](bool) { this->StartRead(&response_); });
  }

  void OnDone(const grpc::Status& status) override {
    state_.Finish(StatusOf(status));
    delete this;
  }

 protected:
  // Tokens of a piece of the answer; -1 for a message that is none.
  virtual int64_t TokensOf(const Response& response) = 0;
  virtual grpc::Status StatusOf(const grpc::Status& status) { return status; }
  bool slow() const { return state_.kind.reader_delay > absl::ZeroDuration(); }
  void Begin() {
    if (slow()) this->AddHold();  // reads are begun by the alarm, outside of reactions
    this->StartRead(&response_);
    this->StartCall();
  }

  CallState state_;
  Response response_;

 private:
  std::unique_ptr<grpc::Alarm> pause_;
};

class GenerateCall final
    : public ReadingCall<grpc::ClientReadReactor<v1::GenerateResponse>, v1::GenerateResponse> {
 public:
  using ReadingCall::ReadingCall;
  void Start(v1::AssayService::Stub& stub) {
    const PlannedRequest& planned = state_.result.dispatch.planned;
    request_.set_model(state_.kind.model);
    request_.set_prompt(TextOf(planned));
    request_.mutable_sampling()->set_max_tokens(planned.answer_tokens);
    request_.mutable_sampling()->set_ignore_eos(true);
    stub.async()->Generate(&state_.context, &request_, this);
    Begin();
  }

 private:
  int64_t TokensOf(const v1::GenerateResponse& response) override {
    return response.tokens_size() > 0 ? response.tokens_size() : -1;
  }
  v1::GenerateRequest request_;
};

// A request of the Open Inference Protocol. Generation has its parameters, as this server and
// Triton's back ends with the same names take them.
void FillRequest(const RequestKind& kind, const PlannedRequest& planned,
                 inference::ModelInferRequest& out) {
  out.set_model_name(kind.model);
  auto& input = *out.add_inputs();
  input.set_name(kind.input.name);
  input.set_datatype(kind.input.datatype);
  size_t elements = 1;
  for (const int64_t size : kind.input.shape) {
    input.add_shape(size);
    elements *= static_cast<size_t>(size);
  }
  std::string& raw = *out.add_raw_input_contents();
  if (kind.input.datatype == "BYTES") {
    const std::string text = TextOf(planned);
    const auto length = static_cast<uint32_t>(text.size());
    raw.assign(reinterpret_cast<const char*>(&length), sizeof(length));
    raw += text;
  } else {
    static const std::pair<const char*, size_t> kBytes[] = {
        {"INT16", 2},  {"UINT16", 2}, {"FP16", 2},  {"BF16", 2},   {"INT32", 4},
        {"UINT32", 4}, {"FP32", 4},   {"INT64", 8}, {"UINT64", 8}, {"FP64", 8}};
    size_t bytes = 1;
    for (const auto& [name, size] : kBytes) {
      if (kind.input.datatype == name) bytes = size;
    }
    // 0 or 1 in the lowest byte: valid in every type, ids and flags among them.
    raw.assign(elements * bytes, '\0');
    std::mt19937_64 engine(planned.seed);
    for (size_t i = 0; i < elements; ++i) raw[i * bytes] = static_cast<char>(engine() & 1);
  }
  if (kind.call == Call::kGenerate) {
    (*out.mutable_parameters())["max_tokens"].set_int64_param(planned.answer_tokens);
    (*out.mutable_parameters())["ignore_eos"].set_bool_param(true);
  }
}

class StreamInferCall final
    : public ReadingCall<grpc::ClientBidiReactor<inference::ModelInferRequest,
                                                 inference::ModelStreamInferResponse>,
                         inference::ModelStreamInferResponse> {
 public:
  using ReadingCall::ReadingCall;
  void Start(inference::GRPCInferenceService::Stub& stub) {
    FillRequest(state_.kind, state_.result.dispatch.planned, request_);
    state_.context.AddMetadata("triton_grpc_error", "true");  // errors as status codes, please
    stub.async()->ModelStreamInfer(&state_.context, this);
    StartWriteLast(&request_, grpc::WriteOptions());
    Begin();
  }

 private:
  int64_t TokensOf(const inference::ModelStreamInferResponse& response) override {
    if (!response.error_message().empty()) {
      error_ = response.error_message();
      return -1;
    }
    // The last message of this server counts the tokens of all; elsewhere a piece is taken for a
    // token.
    const auto& parameters = response.infer_response().parameters();
    const auto total = parameters.find("generated_tokens");
    if (total != parameters.end()) {
      const int64_t all = total->second.int64_param();
      const int64_t more = all - state_.result.tokens;
      if (!HasText(response)) {
        state_.result.tokens = all;
        return -1;
      }
      return std::max<int64_t>(more, 0);
    }
    return HasText(response) ? 1 : -1;
  }
  static bool HasText(const inference::ModelStreamInferResponse& response) {
    const auto& raw = response.infer_response().raw_output_contents();
    return raw.empty() ? response.infer_response().outputs_size() > 0
                       : raw[0].size() > sizeof(uint32_t);
  }
  grpc::Status StatusOf(const grpc::Status& status) override {
    if (!status.ok() || error_.empty()) return status;
    return {grpc::StatusCode::UNKNOWN, error_};  // a server that did not honour triton_grpc_error
  }

  inference::ModelInferRequest request_;
  std::string error_;
};

template <typename Call>
void FinishUnary(const std::shared_ptr<Call>& call, int64_t tokens, const grpc::Status& status) {
  if (status.ok()) call->OnPiece(tokens);
  call->Finish(status);
}

}  // namespace

Target::Target(const Scenario& scenario, const std::string& server) : scenario_(scenario) {
  for (int i = 0; i < scenario.channels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);  // else all share one connection
    Connection connection;
    connection.channel =
        grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
    connection.assay = v1::AssayService::NewStub(connection.channel);
    connection.inference = inference::GRPCInferenceService::NewStub(connection.channel);
    connections_.push_back(std::move(connection));
  }
}

bool Target::WaitForConnection(double seconds) const {
  const auto until = std::chrono::system_clock::now() +
                     std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
  for (const Connection& connection : connections_) {
    if (!connection.channel->WaitForConnected(until)) return false;
  }
  return true;
}

void Target::Start(const Dispatch& dispatch, CallDone done) {
  const RequestKind& kind = scenario_.kinds[dispatch.planned.kind];
  Connection& to = connections_[next_.fetch_add(1) % connections_.size()];
  if (kind.call == Call::kLive) {
    const auto call =
        std::make_shared<UnaryCall<inference::ServerLiveRequest, inference::ServerLiveResponse>>(
            scenario_, dispatch, std::move(done));
    to.inference->async()->ServerLive(
        &call->context, &call->request, &call->response,
        [call](const grpc::Status& status) { FinishUnary(call, 0, status); });
  } else if (kind.call == Call::kGenerate) {
    if (scenario_.open_inference) {
      (new StreamInferCall(scenario_, dispatch, std::move(done)))->Start(*to.inference);
    } else {
      (new GenerateCall(scenario_, dispatch, std::move(done)))->Start(*to.assay);
    }
  } else if (scenario_.open_inference) {
    const auto call =
        std::make_shared<UnaryCall<inference::ModelInferRequest, inference::ModelInferResponse>>(
            scenario_, dispatch, std::move(done));
    FillRequest(kind, dispatch.planned, call->request);
    to.inference->async()->ModelInfer(
        &call->context, &call->request, &call->response,
        [call](const grpc::Status& status) { FinishUnary(call, 0, status); });
  } else {
    const auto call = std::make_shared<UnaryCall<v1::EmbedRequest, v1::EmbedResponse>>(
        scenario_, dispatch, std::move(done));
    call->request.set_model(kind.model);
    call->request.add_texts(TextOf(dispatch.planned));
    to.assay->async()->Embed(
        &call->context, &call->request, &call->response, [call](const grpc::Status& status) {
          const bool any = call->response.embeddings_size() > 0;
          FinishUnary(call, any ? call->response.embeddings(0).tokens() : 0, status);
        });
  }
}

const char* CodeName(grpc::StatusCode code) {
  static const char* const kNames[] = {"OK",
                                       "CANCELLED",
                                       "UNKNOWN",
                                       "INVALID_ARGUMENT",
                                       "DEADLINE_EXCEEDED",
                                       "NOT_FOUND",
                                       "ALREADY_EXISTS",
                                       "PERMISSION_DENIED",
                                       "RESOURCE_EXHAUSTED",
                                       "FAILED_PRECONDITION",
                                       "ABORTED",
                                       "OUT_OF_RANGE",
                                       "UNIMPLEMENTED",
                                       "INTERNAL",
                                       "UNAVAILABLE",
                                       "DATA_LOSS",
                                       "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < std::size(kNames) ? kNames[index] : "UNKNOWN";
}

}  // namespace assay::load
