// Which requests are looked at, and those that wait to be: the hot path's side of drift detection.
// The choice is a keyed hash of the request's number, so that it does not depend on content and
// cannot be guessed. Where that gives fewer than the floor's number per hour, it takes more: one
// falls due every interval, the next request is taken for it, and after a time without requests at
// most one is made up for. What is chosen by the hash counts as well. The choice is made on
// arrival: a request that is cancelled or turns out too long has used up its place (if it gave it
// back, traffic of nothing else would all be sampled). Thread-safe.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/mutex.h"
#include "engine/lifecycle/drift_options.h"
#include "engine/runtime/traffic.h"

namespace assay {

class TrafficSampler final : public TrafficWatch {
 public:
  enum class Skip { kRingFull, kTooLong };
  // `arrived` is called after a request has entered the ring, `skipped` where one has not. Both on
  // engine threads: they must not block.
  TrafficSampler(const SamplerOptions& options, uint64_t key, const Clock& clock,
                 std::function<void()> arrived, std::function<void(Skip)> skipped);
  ~TrafficSampler() override;  // wipes

  bool Sample() override;
  void Served(ServedRequest request) ABSL_LOCKS_EXCLUDED(mu_) override;
  std::optional<ServedRequest> Take() ABSL_LOCKS_EXCLUDED(mu_);  // the oldest
  size_t waiting() const ABSL_LOCKS_EXCLUDED(mu_);
  // Overwrites what waits and takes no more.
  void Close() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const SamplerOptions options_;
  const uint64_t key_;
  const Clock& clock_;
  const std::function<void()> arrived_;
  const std::function<void(Skip)> skipped_;
  std::atomic<uint64_t> requests_{0};
  const int64_t interval_ns_;        // of the floor
  std::atomic<int64_t> due_ns_;      // when the floor asks for the next one
  std::atomic<bool> closed_{false};  // set under the lock
  mutable Mutex mu_;
  std::deque<ServedRequest> ring_ ABSL_GUARDED_BY(mu_);
};

// Overwrites the memory of a request's tokens; of some tokens.
void Wipe(ServedRequest& request);
void WipeTokens(std::vector<int32_t>& tokens);

}  // namespace assay
