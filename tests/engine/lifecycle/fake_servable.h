// Servables without a checkpoint, for tests of the registry.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/lifecycle/registry.h"
#include "tests/support/random_tensor.h"

namespace assay {

// An engine that ends its (imaginary) requests when it is told to drain.
class EndingEngine final : public GenerateEngine {
 public:
  explicit EndingEngine(std::function<void()> on_drain) : on_drain_(std::move(on_drain)) {}
  absl::StatusOr<SequenceId> Submit(GenerateRequest, TokenSink) override {
    if (drained_) return absl::UnavailableError("draining");
    return SequenceId{1};
  }
  absl::Status Ask(absl::Time) const override { return absl::OkStatus(); }
  void Cancel(SequenceId) override {}
  void Drain() override {
    drained_ = true;
    if (on_drain_) on_drain_();
  }
  EngineLoad load() const override { return {.waiting = 3, .running = 2}; }
  size_t kv_bytes() const override { return 1000; }
  size_t scratch_bytes() const override { return 500; }

 private:
  const std::function<void()> on_drain_;
  std::atomic<bool> drained_{false};
};

// A model that owns one tensor, to see its memory come and go.
class OneTensorModel final : public Model {
 public:
  OneTensorModel() : weight_(RandomTensor({256, 256}, 1)) {}
  const ModelSpec& spec() const override { return spec_; }
  const std::vector<LinearSlot>& slots() const override { return slots_; }
  const LinearMap& linears() const override { return linears_; }
  absl::Status Forward(const ForwardArgs&, ComputeContext&) const override {
    return absl::OkStatus();
  }
  size_t scratch_bytes(int64_t, int64_t, int64_t) const override { return 0; }
  size_t other_weight_bytes() const override { return weight_.bytes(); }

 private:
  ModelSpec spec_;
  std::vector<LinearSlot> slots_;
  LinearMap linears_;
  Tensor weight_;
};

inline std::shared_ptr<Servable> NewServable(const std::string& name, int64_t version,
                                             std::function<void()> on_drain = nullptr) {
  auto servable = std::make_shared<Servable>();
  servable->name = name;
  servable->version = version;
  servable->model = std::make_shared<OneTensorModel>();
  servable->generate = std::make_unique<EndingEngine>(std::move(on_drain));
  servable->report.verdict = "admitted";
  return servable;
}

inline std::vector<std::string> States(const ModelRegistry& registry) {
  std::vector<std::string> states;
  for (const VersionInfo& info : registry.List()) {
    states.push_back(info.name + "/" + std::to_string(info.version) + " " +
                     std::string(Name(info.state)));
  }
  return states;
}

}  // namespace assay
