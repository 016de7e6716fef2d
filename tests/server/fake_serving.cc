#include "tests/server/fake_serving.h"

#include <chrono>
#include <numeric>

#include "absl/strings/match.h"
#include "base/clock.h"
#include "server/rpc_metrics.h"

namespace assay {
namespace {

constexpr int kVocab = 200;

}  // namespace

FakeGenerateEngine::FakeGenerateEngine(int max_queue)
    : max_queue_(max_queue), thread_([this] { Loop(); }) {}

FakeGenerateEngine::~FakeGenerateEngine() {
  {
    MutexLock lock(mu_);
    stop_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
}

absl::StatusOr<SequenceId> FakeGenerateEngine::Submit(GenerateRequest request, TokenSink sink) {
  MutexLock lock(mu_);
  if (draining_) return absl::UnavailableError("the engine is draining");
  if (static_cast<int>(running_.size()) >= max_queue_) {
    return absl::ResourceExhaustedError("the queue is full");
  }
  auto sequence = std::make_unique<Sequence>();
  sequence->id = ++last_id_;
  sequence->request = std::move(request);
  sequence->sink = std::move(sink);
  running_.push_back(std::move(sequence));
  changed_.NotifyAll();
  return last_id_;
}

void FakeGenerateEngine::Cancel(SequenceId id) {
  MutexLock lock(mu_);
  for (const auto& sequence : running_) {
    if (sequence->id == id && !sequence->cancelled) {
      sequence->cancelled = true;
      ++cancellations_;
    }
  }
  changed_.NotifyAll();
}

void FakeGenerateEngine::Drain() {
  MutexLock lock(mu_);
  draining_ = true;
  while (!running_.empty()) changed_.Wait(mu_);
}

EngineLoad FakeGenerateEngine::load() const {
  MutexLock lock(mu_);
  return {.running = static_cast<int>(running_.size())};
}

void FakeGenerateEngine::Hold() {
  MutexLock lock(mu_);
  hold_ = true;
}

void FakeGenerateEngine::Release() {
  MutexLock lock(mu_);
  hold_ = false;
  changed_.NotifyAll();
}

void FakeGenerateEngine::WaitForRunning(int sequences) {
  MutexLock lock(mu_);
  while (static_cast<int>(running_.size()) != sequences) changed_.Wait(mu_);
}

int FakeGenerateEngine::cancellations() const {
  MutexLock lock(mu_);
  return cancellations_;
}

void FakeGenerateEngine::Loop() {
  for (;;) {
    std::vector<std::pair<TokenSink, TokenEvent>> events;  // sinks are called without the lock
    {
      MutexLock lock(mu_);
      for (auto it = running_.begin(); it != running_.end();) {
        Sequence& s = **it;
        TokenEvent event;
        const bool expired = s.request.deadline < SteadyClock().Now();
        const bool full = s.generated == s.request.sampling.max_tokens;
        if (s.cancelled || expired || stop_ || (full && !hold_)) {
          event.kind = TokenEvent::Kind::kEnd;
          event.reason = full ? FinishReason::kLength : FinishReason::kCancelled;
          if (s.cancelled) {
            event.status = absl::CancelledError("cancelled");
          } else if (expired) {
            event.reason = FinishReason::kDeadline;
            event.status = absl::DeadlineExceededError("the deadline passed");
          } else if (stop_) {
            event.status = absl::UnavailableError("the engine stops");
          }
          event.usage.prompt_tokens = static_cast<int>(s.request.prompt.size());
          event.usage.generated_tokens = s.generated;
          events.emplace_back(std::move(s.sink), std::move(event));
          it = running_.erase(it);
          changed_.NotifyAll();
          continue;
        }
        if (!hold_) {
          event.token = s.generated % 26;
          event.text = std::string(1, static_cast<char>('a' + event.token));
          event.logprob = -0.5f;
          event.top = {{event.token, -0.5f}};
          ++s.generated;
          events.emplace_back(s.sink, std::move(event));
        }
        ++it;
      }
      if (events.empty()) {
        if (stop_) return;
        // Deadlines are looked at now and then; everything else wakes the loop.
        changed_.WaitUntil(mu_, std::chrono::steady_clock::now() + std::chrono::milliseconds(5));
      }
    }
    for (auto& [sink, event] : events) sink(std::move(event));
  }
}

absl::StatusOr<SequenceId> FakeEncodeEngine::Submit(EncodeRequest request, EncodeSink sink) {
  EncodeResult result;
  result.values = {
      static_cast<float>(request.tokens.size()),
      static_cast<float>(std::accumulate(request.tokens.begin(), request.tokens.end(), 0))};
  result.batch_requests = 2;
  sink(std::move(result));
  return SequenceId{1};
}

absl::StatusOr<int64_t> FakeAdmission::Enqueue(AdmissionRequest request, ProgressSink sink) {
  const absl::StatusOr<VersionInfo> newest = registry_.Find(request.name, 0);
  const int64_t version = request.version != 0 ? request.version
                          : newest.ok()        ? newest->version + 1
                                               : 1;
  if (registry_.Acquire(request.name, version).ok()) {
    return absl::AlreadyExistsError("it serves already");
  }
  AdmissionProgress progress{request.name, version, "open", 1, "1 of 1", false, {}, nullptr};
  registry_.SetState(request.name, version, VersionState::kAdmitting, "open", "");
  sink(progress);
  auto report = std::make_shared<AdmissionReport>();
  report->model = request.name;
  report->calibration.set = request.calibration;
  report->version = version;
  const bool bad = absl::StrContains(request.path, "bad");
  report->verdict = bad ? "rejected" : "admitted";
  if (bad) {
    report->reason = "model.layers.0: mean KL 1.2 is above 0.01";
    progress.status = absl::FailedPreconditionError("rejected by the accuracy gate");
    registry_.SetState(request.name, version, VersionState::kRejected, "", report->reason);
  } else {
    std::shared_ptr<Servable> servable = FakeServable(request.name, ModelTask::kGenerate, metrics_);
    servable->version = version;
    servable->report.verdict = "admitted";
    if (request.canary_share > 0) {
      progress.status = registry_.PublishCanary(std::move(servable), request.canary_share);
    } else {
      registry_.Publish(std::move(servable));
    }
  }
  progress.stage = "done";
  progress.done = true;
  progress.report = report;
  registry_.SetReport(request.name, version, report);
  sink(progress);
  return version;
}

std::shared_ptr<Servable> FakeServable(const std::string& name, ModelTask task, Metrics& metrics) {
  auto servable = std::make_shared<Servable>();
  servable->name = name;
  servable->version = 1;
  servable->spec.family = task == ModelTask::kGenerate ? "llama" : "bert";
  servable->spec.architecture = servable->spec.family;
  servable->spec.task = task;
  servable->spec.hidden = 2;
  servable->spec.vocab = kVocab;
  servable->spec.max_context = 64;
  if (task == ModelTask::kClassify) {
    servable->spec.num_labels = 2;
    servable->spec.labels = {"short", "long"};
  }
  servable->tokenizer = std::make_shared<FakeTokenizer>(FakeTokenizer::Letters(26, {}));
  servable->metrics = metrics.ForModel(name, 1);
  if (task == ModelTask::kGenerate) {
    servable->generate = std::make_unique<FakeGenerateEngine>();
  } else {
    servable->encode = std::make_unique<FakeEncodeEngine>();
  }
  return servable;
}

FakeServing::FakeServing(ServerConfig config)
    : config_(std::move(config)),
      access_({.tokens_path = config_.auth.tokens, .admin_on_data = config_.admin_on_data_port()},
              TokenTable::Read(config_.auth.tokens).value(), metrics_),
      context_{config_,     Policy::Default(), gpus_,    SteadyClock(), RealClock(),
               registry_,   admissions_,       metrics_, gate_,         readiness_,
               statistics_, traffic_,          texts_,   drift_,        events_,
               versions_,   access_,           quotas_,  peers_},
      admin_(std::make_unique<Admin>(context_)),
      open_inference_(context_, *admin_),
      assay_(context_, *admin_) {
  for (const auto& [name, task] :
       {std::pair("text", ModelTask::kGenerate), std::pair("embed", ModelTask::kEmbed),
        std::pair("classify", ModelTask::kClassify)}) {
    std::shared_ptr<Servable> servable = FakeServable(name, task, metrics_);
    if (task == ModelTask::kGenerate) {
      engine_ = static_cast<FakeGenerateEngine*>(servable->generate.get());
    }
    registry_.SetState(name, 1, VersionState::kQueued, "", "");
    registry_.Publish(std::move(servable));
  }
  versions_.Watch();  // events count from here
  readiness_.StartupDeclared();
  grpc::ServerBuilder builder;
  builder.RegisterService(&open_inference_);
  builder.RegisterService(&assay_);
  builder.SetMaxReceiveMessageSize(static_cast<int>(config_.grpc.max_message_bytes));
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> observers;
  observers.push_back(NewRpcMetrics(metrics_, RealClock(), unread_));
  builder.experimental().SetInterceptorCreators(std::move(observers));
  server_ = builder.BuildAndStart();
}

FakeServing::~FakeServing() {
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

}  // namespace assay
