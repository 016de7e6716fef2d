// Throughput of the engine without the network: prefill and decode tokens per second, embeddings
// per second.
//
//   engine_bench --model FILE [--scheme int8_channel] [--activation a8_token] [--threads N]
//   [--streams 1,8,32]
//                [--prompt 512] [--generate 64] [--repeat 3]
//   engine_bench --model FILE --recipe w4a8    # admitted by that recipe, budgets out of the way
//
// Prints one JSON object per measurement, so that compare_llama_cpp.py can run it next to a peer.
// Prefill: one request of
// --prompt tokens, tokens divided by the time to its first token. Decode: N requests of 16 prompt
// tokens each; tokens that arrived after the last stream's first token, divided by the time from
// that moment to the last token.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/mutex.h"
#include "base/thread_pool.h"
#include "engine/lifecycle/admission.h"
#include "engine/metrics.h"
#include "engine/runtime/engine.h"

namespace assay {
namespace {

struct Options {
  std::string model, scheme = "int8_channel", activation = "a8_token", kernel, recipe, evaluation;
  int threads = 0, prompt = 512, generate = 64, repeat = 3;
  std::vector<int> streams = {1, 8, 32};
};

using Instant = std::chrono::steady_clock::time_point;

double Seconds(Instant from, Instant to) {
  return std::chrono::duration<double>(to - from).count();
}

// Arrival times of all tokens of one run.
class Recorder {
 public:
  explicit Recorder(int streams) : arrivals_(static_cast<size_t>(streams)), open_(streams) {}

  TokenSink SinkOf(int stream) {
    return [this, stream](TokenEvent&& event) {
      MutexLock lock(mu_);
      if (event.kind == TokenEvent::Kind::kToken) {
        arrivals_[static_cast<size_t>(stream)].push_back(std::chrono::steady_clock::now());
        return;
      }
      if (!event.status.ok()) status_ = event.status;
      if (--open_ == 0) done_.NotifyAll();
    };
  }
  absl::Status Wait() {
    MutexLock lock(mu_);
    while (open_ > 0) done_.Wait(mu_);
    return status_;
  }
  // Valid after Wait.
  std::vector<std::vector<Instant>> arrivals() {
    MutexLock lock(mu_);
    return arrivals_;
  }

 private:
  Mutex mu_;
  CondVar done_;
  std::vector<std::vector<Instant>> arrivals_ ABSL_GUARDED_BY(mu_);
  int open_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

// Distinct pseudo-random prompts: neither the prefix cache nor repetition helps.
std::vector<int32_t> Prompt(int tokens, int stream, int vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  uint64_t state = 0x9e3779b97f4a7c15u * static_cast<uint64_t>(stream + 1);
  for (int32_t& id : ids) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    id = static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(vocab - 8)) + 4;
  }
  return ids;
}

absl::StatusOr<std::vector<std::vector<Instant>>> Generate(GenerateEngine& engine,
                                                           const ModelSpec& spec, int streams,
                                                           int prompt, int generate, int salt) {
  Recorder recorder(streams);
  for (int stream = 0; stream < streams; ++stream) {
    GenerateRequest request;
    request.prompt = Prompt(prompt, stream + 1000 * salt, spec.vocab);
    request.sampling.max_tokens = generate;
    request.sampling.logprobs = -1;
    request.sampling.ignore_eos = true;
    RETURN_IF_ERROR(engine.Submit(std::move(request), recorder.SinkOf(stream)).status());
  }
  RETURN_IF_ERROR(recorder.Wait());
  return recorder.arrivals();
}

absl::Status Prefill(GenerateEngine& engine, const ModelSpec& spec, const Options& options) {
  for (int run = 0; run < options.repeat; ++run) {
    const Instant start = std::chrono::steady_clock::now();
    ASSIGN_OR_RETURN(const auto arrivals, Generate(engine, spec, 1, options.prompt, 1, run + 1));
    const double rate = options.prompt / Seconds(start, arrivals[0].at(0));
    std::cout << nlohmann::json{{"what", "prefill"}, {"streams", 1}, {"tokens_per_s", rate}}
              << std::endl;
  }
  return absl::OkStatus();
}

absl::Status Decode(GenerateEngine& engine, const ModelSpec& spec, const Options& options,
                    int streams) {
  for (int run = 0; run < options.repeat; ++run) {
    ASSIGN_OR_RETURN(const auto arrivals,
                     Generate(engine, spec, streams, 16, options.generate, 100 + run));
    Instant all_started{}, end{};
    for (const auto& times : arrivals) {
      all_started = std::max(all_started, times.front());
      end = std::max(end, times.back());
    }
    int tokens = 0;
    for (const auto& times : arrivals) {
      for (Instant time : times) tokens += time > all_started ? 1 : 0;
    }
    const double rate = tokens / Seconds(all_started, end);
    std::cout << nlohmann::json{{"what", "decode"}, {"streams", streams}, {"tokens_per_s", rate}}
              << std::endl;
  }
  return absl::OkStatus();
}

absl::Status Encode(EncodeEngine& engine, const ModelSpec& spec, const Options& options) {
  constexpr int kRequests = 64, kTokens = 128;
  for (int run = 0; run < options.repeat; ++run) {
    Mutex mu;
    CondVar done;
    int open = kRequests;
    absl::Status status;
    const Instant start = std::chrono::steady_clock::now();
    for (int i = 0; i < kRequests; ++i) {
      EncodeRequest request;
      request.tokens = Prompt(kTokens, i + 1000 * run, spec.vocab);
      const auto sink = [&](EncodeResult&& result) {
        MutexLock lock(mu);
        if (!result.status.ok()) status = result.status;
        if (--open == 0) done.NotifyAll();
      };
      RETURN_IF_ERROR(engine.Submit(std::move(request), sink).status());
    }
    MutexLock lock(mu);
    while (open > 0) done.Wait(mu);
    RETURN_IF_ERROR(status);
    const double seconds = Seconds(start, std::chrono::steady_clock::now());
    std::cout << nlohmann::json{{"what", "encode"},
                                {"sequence_tokens", kTokens},
                                {"sequences_per_s", kRequests / seconds},
                                {"tokens_per_s", kRequests * kTokens / seconds}}
              << std::endl;
  }
  return absl::OkStatus();
}

// Nothing is refused for its accuracy: the recipe is measured as it is written.
constexpr char kMeasure[] = R"(version: 1
recipes: {plain: {scheme: int8_channel}}
budgets: {measure: {mean_kl: 100, top1: 0, perplexity_ratio: 1000000, cosine: 0, label_agreement: 0}}
rules: [{name: measure, reason: nothing is refused, when: {device: cpu}, recipe: plain, budget: measure}]
)";

absl::StatusOr<std::shared_ptr<Servable>> Admit(const Options& options, ThreadPool& pool,
                                                Metrics& metrics) {
  ModelRegistry registry;
  AdmissionOptions pipeline_options;
  ASSIGN_OR_RETURN(pipeline_options.policy, Policy::Parse(kMeasure, "engine_bench"));
  pipeline_options.engine.prefix_cache = false;
  pipeline_options.evaluation_path = options.evaluation;
  Mutex mu;
  CondVar ended;
  std::optional<absl::Status> outcome;
  const auto pipeline =
      AdmissionPipeline::Start(registry, pool, metrics, RealClock(), std::move(pipeline_options));
  const auto sink = [&](const AdmissionProgress& progress) {
    if (!progress.done) return;
    MutexLock lock(mu);
    outcome = progress.status;
    ended.NotifyAll();
  };
  RETURN_IF_ERROR(
      pipeline->Enqueue({.name = "bench", .path = options.model, .recipe = options.recipe}, sink)
          .status());
  {
    MutexLock lock(mu);
    while (!outcome.has_value()) ended.Wait(mu);
    RETURN_IF_ERROR(*outcome);
  }
  return registry.Acquire("bench");
}

absl::Status Generation(GenerateEngine& engine, const ModelSpec& spec, const Options& options) {
  RETURN_IF_ERROR(Generate(engine, spec, 2, 64, 4, 0).status());  // warm-up
  RETURN_IF_ERROR(Prefill(engine, spec, options));
  for (int streams : options.streams) RETURN_IF_ERROR(Decode(engine, spec, options, streams));
  return absl::OkStatus();
}

absl::Status RunRecipe(const Options& options) {
  ThreadPool pool({.num_threads = options.threads});
  Metrics metrics("bench", "cpu");
  ASSIGN_OR_RETURN(const std::shared_ptr<Servable> servable, Admit(options, pool, metrics));
  nlohmann::json kernels = nlohmann::json::object();
  for (const LayerReport& layer : servable->report.layers)
    kernels[layer.kernel] = kernels.value(layer.kernel, 0) + 1;
  std::cout << nlohmann::json{{"what", "kernels"}, {"layers", kernels}} << std::endl;
  if (servable->encode != nullptr) return Encode(*servable->encode, servable->spec, options);
  return Generation(*servable->generate, servable->spec, options);
}

absl::Status Run(const Options& options) {
  if (!options.recipe.empty()) return RunRecipe(options);
  const std::optional<ActivationMode> activation = FindActivationMode(options.activation);
  if (!activation.has_value()) {
    return absl::InvalidArgumentError("unknown activation mode: " + options.activation);
  }
  ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(options.model));
  ASSIGN_OR_RETURN(std::shared_ptr<const Model> model,
                   BuildUniform(*checkpoint, options.scheme,
                                {.activation = *activation, .kernel = options.kernel}));
  ThreadPool pool({.num_threads = options.threads});
  Metrics metrics("bench", "cpu");
  const EngineHost host{pool, RealClock(), metrics.ForModel("bench", 1)};
  EngineOptions engine_options;
  engine_options.prefix_cache = false;
  if (model->spec().task != ModelTask::kGenerate) {
    ASSIGN_OR_RETURN(const auto engine, EncodeEngine::Start(model, engine_options, host));
    return Encode(*engine, model->spec(), options);
  }
  ASSIGN_OR_RETURN(std::shared_ptr<const Tokenizer> tokenizer,
                   MakeTokenizer(checkpoint->tokenizer()));
  ASSIGN_OR_RETURN(const auto engine,
                   GenerateEngine::Start(model, tokenizer, engine_options, host));
  return Generation(*engine, model->spec(), options);
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  assay::Options options;
  CLI::App app("Throughput of the engine without the network");
  app.add_option("--model", options.model, "checkpoint file or directory")->required();
  app.add_option("--scheme", options.scheme, "scheme of every linear layer")->capture_default_str();
  app.add_option("--activation", options.activation, "activation mode")->capture_default_str();
  app.add_option("--recipe", options.recipe, "admit by this recipe instead of scheme and mode");
  app.add_option("--evaluation", options.evaluation, "text that the recipe is verified on");
  app.add_option("--kernel", options.kernel, "pin one kernel by name");
  app.add_option("--threads", options.threads, "compute threads, 0 = all cores")
      ->capture_default_str();
  app.add_option("--streams", options.streams, "concurrent streams of the decode runs")
      ->delimiter(',');
  app.add_option("--prompt", options.prompt, "prompt tokens of the prefill run")
      ->capture_default_str();
  app.add_option("--generate", options.generate, "tokens per stream of the decode runs")
      ->capture_default_str();
  app.add_option("--repeat", options.repeat, "runs of each measurement")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = assay::Run(options);
  if (!status.ok()) std::cerr << "engine_bench: " << status << std::endl;
  return status.ok() ? 0 : 1;
}
