// CUDA graphs of a model's steps: the first step of a kind runs as it is (kernels load lazily), the
// second is captured, the others are launched. What cannot be captured runs as it is for good.
//
// One thread at a time. REQUIRES: the device is the calling thread's.
#pragma once
#include <functional>
#include <map>
#include <tuple>

#include "base/cuda/cuda_device.h"
#include "base/dtype.h"
#include "engine/model/cuda/cuda_batch.h"

namespace assay {

class StepGraphs {
 public:
  // Of one arena, one pool (where, how many blocks, of what) and one size each.
  using Key = std::tuple<const std::byte*, const std::byte*, int, DType, CudaStepSizes>;
  // More are dropped, all at once: passes that are not the engine's have arenas of their own.
  static constexpr size_t kMost = 64;

  explicit StepGraphs(CudaDevice& device) : device_(device) {}
  ~StepGraphs() { Drop(); }
  // `run` puts the step into `stream`. What it returns; Internal where a captured step cannot be
  // launched.
  absl::Status Run(const Key& key, GpuStream stream, const std::function<absl::Status()>& run);

 private:
  struct Step {
    GpuGraph graph = nullptr;
    bool eager = false;  // cannot be captured
  };
  absl::StatusOr<GpuGraph> Capture(GpuStream stream, const std::function<absl::Status()>& run);
  void Drop();

  CudaDevice& device_;
  std::map<Key, Step> steps_;
};

}  // namespace assay
