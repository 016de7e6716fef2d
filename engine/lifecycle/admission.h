// From a path to a serving version (design.md section 5): one worker thread, admissions one at a
// time in order of arrival.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "engine/lifecycle/drift_monitor.h"
#include "engine/lifecycle/placement.h"

namespace assay {

struct AdmissionRequest {
  std::string name;     // empty: from the path's last component
  int64_t version = 0;  // 0: one more than the newest known
  std::string path;     // checkpoint file or directory
  // Instead of the policy's recipe, one of: a scheme for every layer ("f32", "int4_group:g32"); a
  // recipe, built-in or from a file (quant/policy/recipe_list.h). Both empty: the policy decides.
  std::string scheme, recipe;
  std::optional<Recipe> exact;  // or one that another version has; goes before both
  std::string calibration;      // file, instead of the recipe's and the options'; empty: theirs
  // Instead of any file: token ids of live requests (DriftMonitor::Prompts). Never logged or
  // stored.
  std::string traffic;
  std::vector<std::string> keep;  // globs over slot names, besides the recipe's
  std::string labelled;           // file (engine/lifecycle/labelled.h), or empty
  SearchRecipe search;            // what is set here replaces the recipe's
  std::optional<Budget> budget;   // instead of the policy's
  bool dry_run = false;           // verify and report, do not serve
  // 0: becomes the stable version; else a canary beside it, with that share (0..1) of the requests.
  double canary_share = 0;
  int64_t instead_of = 0;  // a version that was found to be wrong: not kept for a rollback; 0: none
};

struct AdmissionProgress {
  std::string name;
  int64_t version = 0;
  std::string stage;    // as StageReport::stage; "done" last
  double fraction = 0;  // of the stage, 0..1
  std::string message;  // "layer 12 of 30"
  bool done = false;
  absl::Status
      status;  // of the whole admission, when done: FailedPrecondition = REJECTED by the gate
  std::shared_ptr<const AdmissionReport> report;  // when done and a verdict was reached
};
// Called on the admission thread; must not block.
using ProgressSink = std::function<void(const AdmissionProgress&)>;

struct AdmissionOptions {
  Policy policy = Policy::Default();
  EngineOptions engine;
  std::string cache_dir;            // artifacts; empty = no cache
  std::string evaluation_path;      // text; empty = the bundled extract
  std::string calibration_path;     // where a recipe names none; empty = the bundled extract
  uint64_t memory_limit_bytes = 0;  // 0 = what the host has available
  int max_queue = 16;
  const Gpus* gpus = nullptr;  // null: the CPU alone. Outlives the pipeline and what it publishes
  uint64_t gpu_kv_bytes = 0;   // KV cache of a model on a GPU; 0 = what is left there
  DriftMonitor* drift = nullptr;  // watches what is admitted; null: nobody. Outlives the pipeline
};

class AdmissionPipeline {
 public:
  // Ends the running admission at its next step and drops the queue (FAILED: shutting down).
  virtual ~AdmissionPipeline() = default;
  static std::unique_ptr<AdmissionPipeline> Start(ModelRegistry& registry, ThreadPool& pool,
                                                  Metrics& metrics, const Clock& clock,
                                                  AdmissionOptions options);
  // Queues an admission and returns its version. InvalidArgument (name, path, share, a
  // version below one that serves or is on its way), AlreadyExists (version is serving or on its
  // way), FailedPrecondition (a canary without a stable version), ResourceExhausted (queue full).
  virtual absl::StatusOr<int64_t> Enqueue(AdmissionRequest request, ProgressSink sink) = 0;
  virtual int in_progress() const = 0;
};

}  // namespace assay
