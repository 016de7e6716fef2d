#include "engine/lifecycle/admission.h"

#include <atomic>
#include <deque>
#include <filesystem>
#include <map>
#include <new>
#include <set>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/ladder.h"
#include "quant/policy/recipe_list.h"

namespace assay {
namespace {

constexpr size_t kMaxNameBytes = 128;
constexpr char kUnknownModel[] = "_unknown";  // what metrics call models that do not exist
constexpr size_t kMaxEnded = 32;  // versions that did not go into service and keep their series

// The last component of a path without the ending of its container.
std::string NameFromPath(const std::string& path) {
  std::filesystem::path last = std::filesystem::path(path).lexically_normal();
  if (!last.has_filename()) last = last.parent_path();
  std::string name = last.filename().string();
  for (const char* ending : {".gguf", ".safetensors"}) {
    const size_t length = std::char_traits<char>::length(ending);
    if (name.size() > length && name.compare(name.size() - length, length, ending) == 0) {
      name.resize(name.size() - length);
    }
  }
  for (char& c : name) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_') c = '-';
  }
  return name;
}

absl::Status CheckName(const std::string& name) {
  bool good = !name.empty() && name.size() <= kMaxNameBytes && name != "." && name != "..";
  good = good && name != kUnknownModel;
  for (const char c : name) {
    good = good &&
           (absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-');
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a model's name is 1 to ", kMaxNameBytes,
                   " letters, digits, dots, dashes and underscores, and not _unknown: name=",
                   name.substr(0, kMaxNameBytes)));
}

bool IsLive(VersionState state) {
  return state != VersionState::kRetired && state != VersionState::kRejected &&
         state != VersionState::kFailed;
}

std::string_view Outcome(const absl::Status& status, const AdmissionReport& report) {
  if (status.ok()) return "admitted";
  if (report.verdict != "rejected") return "failed";
  return absl::IsResourceExhausted(status) ? "rejected_size" : "rejected_accuracy";
}

class Pipeline final : public AdmissionPipeline {
 public:
  Pipeline(ModelRegistry& registry, ThreadPool& pool, Metrics& metrics, const Clock& clock,
           AdmissionOptions options, AdmissionHooks hooks)
      : registry_(registry),
        metrics_(metrics),
        options_(std::move(options)),
        hooks_(std::move(hooks)),
        cache_(options_.cache_dir),
        host_{registry, pool, metrics, clock, options_, hooks_, cache_},
        worker_([this] { Work(); }) {
    if (cache_.enabled()) metrics_.SetArtifactCacheBytes(static_cast<double>(cache_.bytes()));
  }
  ~Pipeline() override;

  absl::StatusOr<int64_t> Enqueue(AdmissionRequest request, ProgressSink sink) override;
  int in_progress() const override {
    MutexLock lock(mu_);
    return static_cast<int>(pending_.size());
  }

 private:
  struct Job {
    AdmissionRequest request;
    ProgressSink sink;
  };
  void Work();
  void Run(Job job, const std::pair<std::string, int64_t>& version);
  absl::Status Attempt(Admission& admission, const ProgressSink& sink);
  absl::Status RunStages(Admission& admission, const ProgressSink& sink);
  absl::Status RunStage(const AdmissionStage& stage, Admission& admission,
                        const ProgressSink& sink);
  AdmissionProgress Conclude(Admission& admission, const absl::Status& status);
  // Of the versions that serve or are on their way; 0: none.
  int64_t HighestLive(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<int64_t> PickVersion(const AdmissionRequest& request)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  ModelRegistry& registry_;
  Metrics& metrics_;
  const AdmissionOptions options_;
  const AdmissionHooks hooks_;
  ArtifactCache cache_;
  const AdmissionHost host_;
  std::atomic<bool> stop_{false};  // the running admission looks at it between its steps
  mutable Mutex mu_;
  CondVar arrived_;
  std::deque<Job> queue_ ABSL_GUARDED_BY(mu_);
  std::set<std::pair<std::string, int64_t>> pending_ ABSL_GUARDED_BY(mu_);  // queued or running
  std::map<std::string, int64_t> newest_ ABSL_GUARDED_BY(mu_);  // versions handed out, by name
  // Series of versions that did not go into service would vanish with their admission: the latest
  // stay visible. Worker thread only.
  std::deque<std::shared_ptr<ModelMetrics>> ended_;
  std::thread worker_;  // last: it uses all of the above
};

void Tell(const ProgressSink& sink, const AdmissionProgress& progress) {
  if (sink) sink(progress);
}

absl::Status CheckRequest(AdmissionRequest& request) {
  if (request.path.empty()) return absl::InvalidArgumentError("an admission needs a path");
  std::error_code error;
  if (!std::filesystem::exists(request.path, error)) {
    return absl::InvalidArgumentError("no such file or directory: path=" + request.path);
  }
  if (request.name.empty()) request.name = NameFromPath(request.path);
  RETURN_IF_ERROR(CheckName(request.name));
  if (request.version < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("a version is a positive number: version=", request.version));
  }
  if (!request.scheme.empty() && !request.recipe.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("an admission takes a scheme or a recipe, not both: scheme=", request.scheme,
                     " recipe=", request.recipe));
  }
  if (!(request.canary_share >= 0 && request.canary_share <= 1)) {  // NaN, too
    return absl::InvalidArgumentError(
        absl::StrCat("a canary's share of the requests is above 0 and at most 1: canary_share=",
                     request.canary_share));
  }
  if (request.dry_run && request.canary_share > 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a dry run does not serve, so it is no canary: canary_share=", request.canary_share));
  }
  for (const std::string& candidate : request.search.candidates) {
    const absl::Status parsed = ParsePlanCandidate(candidate, ActivationMode::kA16).status();
    if (!parsed.ok()) return absl::InvalidArgumentError(parsed.message());
  }
  const absl::Status known = !request.scheme.empty()   ? FindScheme(request.scheme).status()
                             : !request.recipe.empty() ? FindLadder(request.recipe).status()
                                                       : absl::OkStatus();
  return known.ok() ? known : absl::InvalidArgumentError(known.message());
}

Pipeline::~Pipeline() {
  std::deque<Job> dropped;
  {
    MutexLock lock(mu_);
    stop_ = true;
    dropped.swap(queue_);
    arrived_.NotifyAll();
  }
  worker_.join();
  for (const Job& job : dropped) {
    registry_.SetState(job.request.name, job.request.version, VersionState::kFailed, "",
                       "shutting down");
    Tell(job.sink, {.name = job.request.name,
                    .version = job.request.version,
                    .stage = "done",
                    .fraction = 1,
                    .done = true,
                    .status = absl::UnavailableError("shutting down")});
  }
}

int64_t Pipeline::HighestLive(const std::string& name) {
  int64_t highest = 0;
  for (const auto& [pending, version] : pending_) {
    if (pending == name) highest = std::max(highest, version);
  }
  return std::max(highest, registry_.HighestServing(name));
}

absl::StatusOr<int64_t> Pipeline::PickVersion(const AdmissionRequest& request) {
  const absl::StatusOr<VersionInfo> newest = registry_.Find(request.name, 0);
  const int64_t known = std::max(newest.ok() ? newest->version : 0, newest_[request.name]);
  if (request.version == 0) return known + 1;
  const int64_t highest = HighestLive(request.name);
  if (request.version < highest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a higher version serves or is on its way: model=", request.name, " version=",
        request.version, " higher=", highest, " expected=0 (the next number) or more"));
  }
  const absl::StatusOr<VersionInfo> same = registry_.Find(request.name, request.version);
  const bool live = same.ok() && IsLive(same->state);
  if (!live && !pending_.contains({request.name, request.version})) return request.version;
  const std::string state =
      live ? absl::AsciiStrToLower(std::string(Name(same->state))) : "on its way";
  return absl::AlreadyExistsError(absl::StrCat("this version is ", state, ": model=", request.name,
                                               " version=", request.version));
}

absl::StatusOr<int64_t> Pipeline::Enqueue(AdmissionRequest request, ProgressSink sink) {
  RETURN_IF_ERROR(CheckRequest(request));
  {
    MutexLock lock(mu_);
    if (stop_) return absl::UnavailableError("shutting down");
    if (pending_.size() >= static_cast<size_t>(options_.max_queue) + 1) {  // 1: the running one
      return absl::ResourceExhaustedError(
          absl::StrCat("the admission queue is full: max_queue=", options_.max_queue));
    }
    if (request.canary_share > 0 && !registry_.Acquire(request.name).ok()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "a canary needs a stable version beside it, and none serves: model=", request.name));
    }
    ASSIGN_OR_RETURN(request.version, PickVersion(request));
    int64_t& newest = newest_[request.name];
    newest = std::max(newest, request.version);
    pending_.emplace(request.name, request.version);
  }
  // Announced before the worker can see it, and without our lock: watchers may ask us things.
  const int64_t version = request.version;
  registry_.SetPath(request.name, version, request.path);
  registry_.SetState(request.name, version, VersionState::kQueued, "", "");
  MutexLock lock(mu_);
  metrics_.SetAdmissionsInProgress(static_cast<int>(pending_.size()));
  queue_.push_back({std::move(request), std::move(sink)});
  arrived_.NotifyOne();
  return version;
}

void Pipeline::Work() {
  for (;;) {
    Job job;
    {
      MutexLock lock(mu_);
      while (queue_.empty() && !stop_) arrived_.Wait(mu_);
      if (stop_) return;
      job = std::move(queue_.front());
      queue_.pop_front();
    }
    const std::pair<std::string, int64_t> version(job.request.name, job.request.version);
    Run(std::move(job), version);
  }
}

void Pipeline::Run(Job job, const std::pair<std::string, int64_t>& version) {
  AdmissionProgress outcome;
  {
    auto admission =
        std::make_unique<Admission>(Admission{.host = host_, .request = std::move(job.request)});
    admission->metrics = metrics_.ForModel(version.first, version.second);
    admission->allocated_before = CpuDevice().allocated_bytes();
    admission->climb_began = host_.clock.Now();
    absl::Status status = Attempt(*admission, job.sink);
    while (ClimbsOn(*admission, status)) {
      admission = NextAttempt(std::move(admission), status);
      status = Attempt(*admission, job.sink);
    }
    if (status.ok()) RememberRung(*admission);
    outcome = Conclude(*admission, status);
  }  // whatever did not go into service is freed before anybody hears of the end
  {
    MutexLock lock(mu_);
    pending_.erase(version);
    metrics_.SetAdmissionsInProgress(static_cast<int>(pending_.size()));
  }
  Tell(job.sink, outcome);
}

absl::Status Pipeline::Attempt(Admission& admission, const ProgressSink& sink) {
  admission.report.model = admission.request.name;
  admission.report.version = admission.request.version;
  admission.report.source_path = admission.request.path;
  admission.report.assay_version = ASSAY_VERSION;
  try {
    return RunStages(admission, sink);
  } catch (const std::bad_alloc&) {  // the standard library's only word for it
    return absl::ResourceExhaustedError("out of memory during admission");
  }
}

absl::Status Pipeline::RunStages(Admission& admission, const ProgressSink& sink) {
  for (const AdmissionStage& stage : AdmissionStages()) {
    if (stop_) return absl::UnavailableError("shutting down");
    if (!stage.wanted(admission)) continue;
    RETURN_IF_ERROR(RunStage(stage, admission, sink));
  }
  return absl::OkStatus();
}

absl::Status Pipeline::RunStage(const AdmissionStage& stage, Admission& admission,
                                const ProgressSink& sink) {
  const AdmissionRequest& request = admission.request;
  const auto tell = [&](double fraction, const std::string& message) {
    Tell(sink, {.name = request.name,
                .version = request.version,
                .stage = stage.name,
                .fraction = fraction,
                .message = message});
  };
  const bool warming = std::string_view(stage.name) == "warm";
  const bool publishing = std::string_view(stage.name) == "publish";
  if (!publishing) {
    registry_.SetState(request.name, request.version,
                       warming ? VersionState::kWarming : VersionState::kAdmitting, stage.name, "");
    admission.metrics->SetState(warming ? "warming" : "admitting");
  }
  tell(0, "");
  admission.progress = [&](double fraction, const std::string& message) {
    tell(fraction, message);
    return stop_ ? absl::UnavailableError("shutting down") : absl::OkStatus();
  };
  admission.note.clear();
  const absl::Time begin = host_.clock.Now();
  absl::Status status = stage.run(admission);
  // What was computed from a file that changed meanwhile is not what its hash says.
  if (status.ok() && admission.checkpoint != nullptr) status = admission.checkpoint->Unchanged();
  const absl::Duration elapsed = host_.clock.Now() - begin;
  admission.metrics->AdmissionStageDone(stage.name, elapsed);
  admission.report.stages.push_back(
      {stage.name, elapsed, status.ok() ? admission.note : std::string(status.message())});
  if (status.ok()) tell(1, admission.note);
  return status;
}

AdmissionProgress Pipeline::Conclude(Admission& admission, const absl::Status& status) {
  const AdmissionRequest& request = admission.request;
  AdmissionProgress outcome{.name = request.name,
                            .version = request.version,
                            .stage = "done",
                            .fraction = 1,
                            .message = admission.report.reason,
                            .done = true,
                            .status = status};
  admission.metrics->AdmissionDone(Outcome(status, admission.report));
  if (!status.ok() && admission.stored != nullptr &&
      !admission.report.verification.defects.empty()) {
    // Its checksums hold but its numbers do not: the next admission must not find it.
    (void)cache_.Quarantine(admission.artifact_key);  // logs; the verdict stands without it
  }
  if (!status.ok() && admission.report.verdict == "admitted") {  // passed, but cannot be served
    admission.report.verdict = "failed";
    admission.report.reason = std::string(status.message());
  }
  if (!admission.report.verdict.empty()) {
    outcome.report = std::make_shared<const AdmissionReport>(admission.report);
    registry_.SetReport(request.name, request.version, outcome.report);
  }
  if (status.ok() && !request.dry_run) {
    admission.metrics->SetState("serving");
    return outcome;  // Publish has told the registry
  }
  ended_.push_back(admission.metrics);
  if (ended_.size() > kMaxEnded) ended_.pop_front();
  const bool rejected = admission.report.verdict == "rejected";
  if (status.ok()) {
    registry_.SetState(request.name, request.version, VersionState::kRetired, "",
                       "dry run: " + admission.report.reason);
  } else {
    outcome.message = std::string(status.message());
    admission.metrics->SetState(rejected ? "rejected" : "failed");
    registry_.SetState(request.name, request.version,
                       rejected ? VersionState::kRejected : VersionState::kFailed, "",
                       outcome.message);
    if (stop_) return outcome;  // not news for an operator who stops the server
    Log(LogLevel::kWarning, rejected ? "model rejected" : "admission failed",
        {{"model", request.name},
         {"version", absl::StrCat(request.version)},
         {"reason", outcome.message}});
  }
  return outcome;
}

}  // namespace

std::unique_ptr<AdmissionPipeline> StartAdmissionPipeline(ModelRegistry& registry, ThreadPool& pool,
                                                          Metrics& metrics, const Clock& clock,
                                                          AdmissionOptions options,
                                                          AdmissionHooks hooks) {
  return std::make_unique<Pipeline>(registry, pool, metrics, clock, std::move(options),
                                    std::move(hooks));
}

std::unique_ptr<AdmissionPipeline> AdmissionPipeline::Start(ModelRegistry& registry,
                                                            ThreadPool& pool, Metrics& metrics,
                                                            const Clock& clock,
                                                            AdmissionOptions options) {
  return StartAdmissionPipeline(registry, pool, metrics, clock, std::move(options), {});
}

}  // namespace assay
