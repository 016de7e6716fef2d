// Counts what an engine reports. Thread-safe; never allocates.
#pragma once
#include <atomic>

#include "engine/metrics.h"

namespace assay {

class FakeModelMetrics final : public ModelMetrics {
 public:
  std::atomic<int> rejected{0}, last_reject_reason{-1};
  std::atomic<int> deadline_in_queue{0}, deadline_in_compute{0};
  std::atomic<int> cancelled_in_queue{0}, cancelled_in_compute{0};
  std::atomic<int> queued{0}, steps{0}, step_requests{0}, max_step_requests{0};
  std::atomic<int> first_tokens{0}, traced_first_tokens{0}, inter_tokens{0}, requests_done{0};
  std::atomic<int> finished[5] = {};  // by FinishReason
  std::atomic<int> prompt_tokens{0}, generated_tokens{0}, prefix_hits{0}, preempted{0};
  std::atomic<int> sampled_from_candidates{0}, sampled_from_rows{0};
  std::atomic<int> kv_used{0}, kv_cached{0}, kv_total{0}, max_kv_used{0};
  std::atomic<int> waiting{0}, running{0};

  void RequestDone(Outcome, absl::Duration, TraceId) override { ++requests_done; }
  void Rejected(RejectReason reason) override {
    ++rejected;
    last_reject_reason = static_cast<int>(reason);
  }
  void DeadlineExceeded(WorkStage stage) override {
    ++(stage == WorkStage::kQueue ? deadline_in_queue : deadline_in_compute);
  }
  void Cancelled(WorkStage stage) override {
    ++(stage == WorkStage::kQueue ? cancelled_in_queue : cancelled_in_compute);
  }
  void Queued(absl::Duration) override { ++queued; }
  void StepDone(int requests, absl::Duration) override {
    ++steps;
    step_requests += requests;
    max_step_requests = std::max<int>(max_step_requests, requests);
  }
  void SetLoad(int new_waiting, int new_running) override {
    waiting = new_waiting;
    running = new_running;
  }
  void FirstToken(absl::Duration, TraceId trace) override {
    ++first_tokens;
    if (trace) ++traced_first_tokens;
  }
  void InterToken(absl::Duration) override { ++inter_tokens; }
  void TokensDone(int, int, FinishReason reason, absl::Duration) override {
    ++finished[static_cast<int>(reason)];
  }
  void TokensProcessed(int prompt, int generated, int hits) override {
    prompt_tokens += prompt;
    generated_tokens += generated;
    prefix_hits += hits;
  }
  void RowsSampled(int from_candidates, int from_rows) override {
    sampled_from_candidates += from_candidates;
    sampled_from_rows += from_rows;
  }
  void Preempted() override { ++preempted; }
  void SetKvBlocks(int used, int cached, int total) override {
    kv_used = used;
    kv_cached = cached;
    kv_total = total;
    max_kv_used = std::max<int>(max_kv_used, used);
  }
  void SetInfo(std::string_view, std::string_view, std::string_view) override {}
  void SetState(std::string_view) override {}
  void SetMemory(MemoryKind, double) override {}
  void SetQuantization(const std::vector<std::pair<std::string, int>>&, double) override {}
  void AdmissionStageDone(std::string_view, absl::Duration) override {}
  void AdmissionDone(std::string_view) override {}
  void SetAccuracyLoss(std::string_view, double) override {}
  void Loaded(std::string_view, absl::Duration) override {}
  void SetTrafficShare(double) override {}
};

}  // namespace assay
