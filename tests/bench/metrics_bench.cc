// What metrics cost: all that is counted for one request, what the interceptor adds to an RPC, and
// a scrape of ten models. loadtest/metrics_cost.py sets them beside a request of the server.
#include <benchmark/benchmark.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/metrics.h"
#include "proto/open_inference/grpc_service.grpc.pb.h"
#include "server/rpc_metrics.h"
#include "server/trace_context.h"

namespace assay {
namespace {

// One generation of state.range(0) tokens, alone in its steps: every verb that the server, the
// interceptor and the engine call.
void CountRequest(ModelMetrics& model, RpcMetrics& rpc, int tokens, TraceId trace) {
  rpc.Started();
  model.SetLoad(1, 0);
  model.Queued(absl::Microseconds(20));
  for (int i = 0; i < tokens; ++i) {
    model.StepDone(1, absl::Microseconds(90));
    model.TokensProcessed(i == 0 ? 16 : 0, 1, 0);
    if (i == 0) {
      model.FirstToken(absl::Microseconds(200), trace);
    } else {
      model.InterToken(absl::Microseconds(90));
    }
    model.SetLoad(0, 1);
    model.SetKvBlocks(2, 0, 64);
  }
  model.TokensDone(16, tokens, FinishReason::kLength, absl::Milliseconds(1));
  model.SetLoad(0, 0);
  model.SetKvBlocks(0, 2, 64);
  model.RequestDone(Outcome::kSuccess, absl::Milliseconds(1), trace);
  rpc.Done(0, absl::Milliseconds(1), 1, tokens + 1);
}

void BM_Request(benchmark::State& state, TraceId trace) {
  Metrics metrics("0.1.0", "cpu");
  const auto model = metrics.ForModel("m", 1);
  RpcMetrics& rpc = metrics.ForRpc("assay.v1.AssayService", "Generate", "server_stream");
  for (auto _ : state) CountRequest(*model, rpc, static_cast<int>(state.range(0)), trace);
  state.SetItemsProcessed(state.iterations());
}
BENCHMARK_CAPTURE(BM_Request, untraced, TraceId{})->Arg(1)->Arg(8)->Arg(64);
BENCHMARK_CAPTURE(BM_Request, traced, TraceId{1, 2})->Arg(1)->Arg(8)->Arg(64);

class LiveService final : public inference::GRPCInferenceService::CallbackService {
 public:
  explicit LiveService(bool reads_trace) : reads_trace_(reads_trace) {}

 private:
  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context,
                                       const inference::ServerLiveRequest*,
                                       inference::ServerLiveResponse*) override {
    if (reads_trace_) benchmark::DoNotOptimize(TraceOf(*context));
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  const bool reads_trace_;
};

// Time of client and server together: the difference of the two is the interceptor's and that of
// looking for a trace.
void BM_Rpc(benchmark::State& state, bool observed) {
  Metrics metrics("0.1.0", "cpu");
  UnreadWatch unread(absl::Minutes(1), SteadyClock(), metrics);
  LiveService service(observed);
  grpc::ServerBuilder builder;
  builder.RegisterService(&service);
  if (observed) {
    std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> observers;
    observers.push_back(NewRpcMetrics(metrics, RealClock(), unread));
    builder.experimental().SetInterceptorCreators(std::move(observers));
  }
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const auto stub = inference::GRPCInferenceService::NewStub(server->InProcessChannel({}));
  for (auto _ : state) {
    grpc::ClientContext context;
    inference::ServerLiveResponse response;
    if (!stub->ServerLive(&context, {}, &response).ok()) state.SkipWithError("the RPC failed");
  }
}
BENCHMARK_CAPTURE(BM_Rpc, plain, false)->MeasureProcessCPUTime();
BENCHMARK_CAPTURE(BM_Rpc, observed, true)->MeasureProcessCPUTime();

// Ten models, four of which generate, as in MetricsTest.TenModelsStayWithinTheSeriesBudget.
void BM_Scrape(benchmark::State& state, ExpositionFormat format) {
  Metrics metrics("0.1.0", "cpu");
  for (int i = 0; i < 32; ++i) {
    RpcMetrics& rpc = metrics.ForRpc("inference.GRPCInferenceService", absl::StrCat("M", i), "t");
    if (i < 12) rpc.Done(0, absl::Seconds(1), 1, 1);
    if (i < 12) rpc.Done(5, absl::Seconds(1), 1, 1);
  }
  std::vector<std::shared_ptr<ModelMetrics>> models;
  std::vector<std::unique_ptr<DriftMetrics>> drift;
  for (int i = 0; i < 10; ++i) {
    const std::string name = absl::StrCat("model-", i);
    ModelMetrics& model = *models.emplace_back(metrics.ForModel(name, 1));
    if (i < 4) model.FirstToken(absl::Milliseconds(1), {1, 2});
    model.RequestDone(Outcome::kSuccess, absl::Milliseconds(1), {1, 2});
    model.SetInfo("gguf", "int8_channel", "cpu");
    model.SetQuantization({{"int8_channel", 120}, {"bf16", 1}}, 3.9);
    model.SetAccuracyLoss("mean_kl", 0.01);
    drift.push_back(metrics.ForDrift(name, 1, i < 4 ? "mean_kl" : "cosine_loss"));
  }
  std::string text;
  for (auto _ : state) benchmark::DoNotOptimize(text = metrics.Scrape(format));
  size_t series = 0;
  for (size_t at = 0; at < text.size(); at = text.find('\n', at) + 1) series += text[at] != '#';
  state.counters["series"] = static_cast<double>(series);
  state.counters["bytes"] = static_cast<double>(text.size());
}
BENCHMARK_CAPTURE(BM_Scrape, text, ExpositionFormat::kText)->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(BM_Scrape, open_metrics, ExpositionFormat::kOpenMetrics)
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace assay
