#include "engine/model/cuda/step_graphs.h"

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace assay {

absl::Status StepGraphs::Run(const Key& key, GpuStream stream,
                             const std::function<absl::Status()>& run) {
  if (steps_.size() >= kMost && !steps_.contains(key)) Drop();
  const auto [entry, first] = steps_.try_emplace(key);
  Step& step = entry->second;
  if (first || step.eager) return run();
  if (step.graph == nullptr) {
    absl::StatusOr<GpuGraph> graph = Capture(stream, run);
    if (!graph.ok()) {
      RETURN_IF_ERROR(device_.health());
      Log(LogLevel::kWarning, "a step cannot be captured: it is launched kernel by kernel",
          {{"rows", absl::StrCat(std::get<CudaStepSizes>(key).rows)},
           {"error", graph.status().ToString()}});
      step.eager = true;
      return run();
    }
    step.graph = *graph;
  }
  return device_.Noted(device_.runtime().Launch(step.graph, stream));
}

absl::StatusOr<GpuGraph> StepGraphs::Capture(GpuStream stream,
                                             const std::function<absl::Status()>& run) {
  const CudaRuntime& runtime = device_.runtime();
  RETURN_IF_ERROR(device_.Noted(runtime.BeginCapture(stream)));
  const absl::Status ran = run();
  absl::StatusOr<GpuGraph> graph = runtime.EndCapture(stream);
  if (!ran.ok()) {
    if (graph.ok()) runtime.DestroyGraph(*graph);
    return ran;
  }
  RETURN_IF_ERROR(device_.Noted(graph.status()));
  return graph;
}

void StepGraphs::Drop() {
  for (const auto& [key, step] : steps_) {
    if (step.graph != nullptr) device_.runtime().DestroyGraph(step.graph);
  }
  steps_.clear();
}

}  // namespace assay
