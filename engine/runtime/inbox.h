// What other threads hand to an engine's loop, and what they may know about it: arrivals (bounded),
// cancellations, drain, stop, load. It holds the engine's only mutex.
//
// Thread rule: Push, Cancel, Drain, Stop, load from any thread; Take and Publish from the loop.
#pragma once
#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "base/mutex.h"
#include "engine/runtime/engine.h"
#include "engine/runtime/queue_limit.h"

namespace assay {

// `company`: how long a request may wait for others although there is room.
inline QueueLimits QueueLimitsOf(const EngineOptions& options,
                                 absl::Duration company = absl::ZeroDuration()) {
  const bool bounded = options.max_queue_wait > absl::ZeroDuration();
  return {.max_waiting = options.max_queue,
          .max_wait = bounded ? options.max_queue_wait + company : absl::InfiniteDuration()};
}

template <typename Item>  // has a field `id`
class Inbox {
 public:
  // `limits` bound arrivals that have not been started.
  explicit Inbox(const QueueLimits& limits) : limits_(limits) {}

  // Unavailable: draining; ResourceExhausted: CheckQueue's. Push asks again.
  absl::Status Check(const Newcomer& newcomer) const ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    return CheckLocked(newcomer);
  }

  // Gives the item its id.
  absl::StatusOr<SequenceId> Push(std::unique_ptr<Item> item, const Newcomer& newcomer)
      ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    RETURN_IF_ERROR(CheckLocked(newcomer));
    const SequenceId id = item->id = ++last_id_;
    arrivals_.push_back(std::move(item));
    ++load_.waiting;
    ++num_open_;
    changed_.NotifyAll();
    return id;
  }

  void Cancel(SequenceId id) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    if (num_open_ == 0) return;
    cancelled_.push_back(id);
    changed_.NotifyAll();
  }

  // Refuses arrivals from now on; returns when nothing is open.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    draining_ = wake_ = true;
    changed_.NotifyAll();
    while (num_open_ > 0) changed_.Wait(mu_);
  }

  void Stop() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    draining_ = stopped_ = true;
    changed_.NotifyAll();
  }

  EngineLoad load() const ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    return load_;
  }

  struct Delivery {
    std::vector<std::unique_ptr<Item>> arrivals;
    std::vector<SequenceId> cancelled;
    bool draining = false, stopped = false;
  };
  // Waits up to `patience` for news, then moves it into `delivery`, whose vectors must be empty
  // (their capacity is reused).
  void Take(absl::Duration patience, Delivery& delivery) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    if (patience > absl::ZeroDuration() && patience < absl::Hours(1)) {
      const auto until = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(patience);
      while (!HasNews() && changed_.WaitUntil(mu_, until)) {
      }
    } else if (patience > absl::ZeroDuration()) {
      while (!HasNews()) changed_.Wait(mu_);
    }
    wake_ = false;
    delivery.arrivals.swap(arrivals_);
    delivery.cancelled.swap(cancelled_);
    delivery.draining = draining_;
    delivery.stopped = stopped_;
  }

  // What happened since the last call.
  struct Changes {
    absl::Time now;
    int started = 0;  // left the queue for a step
    int ended = 0;    // their sinks were called
  };
  // The loop's state after all of the last delivery was taken in.
  void Publish(EngineLoad load, const Changes& changes) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    rate_.Observe(changes.now, changes.started, load.waiting);
    load.waiting += static_cast<int>(arrivals_.size());
    load_ = load;
    num_open_ -= changes.ended;
    if (num_open_ == 0) changed_.NotifyAll();
  }

 private:
  absl::Status CheckLocked(const Newcomer& newcomer) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (draining_) return absl::UnavailableError("the engine is draining");
    return CheckQueue(limits_, rate_, load_.waiting, newcomer);
  }
  bool HasNews() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return wake_ || stopped_ || !arrivals_.empty() || !cancelled_.empty();
  }

  const QueueLimits limits_;
  mutable Mutex mu_;
  CondVar changed_;
  std::vector<std::unique_ptr<Item>> arrivals_ ABSL_GUARDED_BY(mu_);
  std::vector<SequenceId> cancelled_ ABSL_GUARDED_BY(mu_);
  EngineLoad load_ ABSL_GUARDED_BY(mu_);
  QueueRate rate_ ABSL_GUARDED_BY(mu_);
  SequenceId last_id_ ABSL_GUARDED_BY(mu_) = 0;
  int num_open_ ABSL_GUARDED_BY(mu_) = 0;  // accepted and not ended
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;
  bool wake_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace assay
