// One admission pipeline over a registry, synchronous for tests.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <iostream>
#include <map>
#include <memory>
#include <string>

#include "base/thread_pool.h"
#include "engine/lifecycle/admission_stages.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {

inline std::string Stories260k() {
  return GoldenPath("../../data/stories260k/stories260K-f32.gguf");
}

// A decoder that is right in prefill; where a pass continues sequences by one token each (a decode
// step), every other logit is off by `bias`.
class OffInDecode final : public Model {
 public:
  OffInDecode(std::shared_ptr<const Model> model, float bias)
      : model_(std::move(model)), bias_(bias) {}
  const ModelSpec& spec() const override { return model_->spec(); }
  const std::vector<LinearSlot>& slots() const override { return model_->slots(); }
  const LinearMap& linears() const override { return model_->linears(); }
  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override {
    RETURN_IF_ERROR(model_->Forward(args, context));
    const auto& sequences = args.batch.sequences;
    const bool decode = std::all_of(
        sequences.begin(), sequences.end(),
        [](const SequenceSpan& span) { return span.start_position > 0 && span.num_rows == 1; });
    const auto logits = static_cast<int64_t>(args.batch.logit_rows.size()) * spec().vocab;
    for (int64_t i = 0; decode && i < logits; i += 2) args.out.as<float>()[i] += bias_;
    return absl::OkStatus();
  }
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context) const override {
    return model_->scratch_bytes(rows, logit_rows, context);
  }
  size_t other_weight_bytes() const override { return model_->other_weight_bytes(); }

 private:
  const std::shared_ptr<const Model> model_;
  const float bias_;
};

class AdmissionFixture : public testing::Test {
 protected:
  explicit AdmissionFixture(absl::Duration rollback_window = absl::ZeroDuration())
      : registry_(RealClock(), rollback_window) {}
  // Starts (or restarts) the pipeline with these options and hooks.
  void Start(AdmissionOptions options, AdmissionHooks hooks = {}) {
    pipeline_.reset();
    options.engine.max_sequences = 4;
    options.engine.kv_bytes = 1 << 20;
    const auto counted = hooks.after_quantize;
    hooks.after_quantize = [this, counted](const LinearSlot& slot, QuantizedTensor& tensor) {
      ++quantized_;
      if (counted) counted(slot, tensor);
    };
    pipeline_ = StartAdmissionPipeline(registry_, pool_, metrics_, RealClock(), std::move(options),
                                       std::move(hooks));
  }
  AdmissionOptions Cached() const {
    AdmissionOptions options;
    options.cache_dir = directory_.path() + "/cache";
    return options;
  }
  // Admits and waits for the end.
  AdmissionProgress Admit(AdmissionRequest request) {
    quantized_ = 0;
    stages_.clear();
    std::promise<AdmissionProgress> end;
    const absl::StatusOr<int64_t> version =
        pipeline_->Enqueue(std::move(request), [&](const AdmissionProgress& progress) {
          if (stages_.empty() || stages_.back() != progress.stage) {
            stages_.push_back(progress.stage);
          }
          if (verbose_) {
            std::cerr << absl::FormatTime("%H:%M:%S ", absl::Now(), absl::UTCTimeZone())
                      << progress.stage << " " << progress.fraction << " " << progress.message
                      << "\n";
          }
          if (progress.done) end.set_value(progress);
        });
    EXPECT_OK(version);
    if (!version.ok()) return {.status = version.status()};
    return end.get_future().get();
  }
  AdmissionProgress AdmitStories() { return Admit({.name = "stories", .path = Stories260k()}); }

  TempDir directory_;
  ThreadPool pool_{{.num_threads = 2}};
  Metrics metrics_{"test", "cpu"};
  ModelRegistry registry_;
  std::unique_ptr<AdmissionPipeline> pipeline_;  // last: stopped first
  bool verbose_ = false;                         // print the progress
  int quantized_ = 0;                            // layers that were quantized for the last Admit
  std::vector<std::string> stages_;              // of the last Admit
};

}  // namespace assay
