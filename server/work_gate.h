// Counts the requests that were accepted and refuses new ones once the server drains, so that no
// accepted request is lost. Thread-safe.
#pragma once
#include <chrono>
#include <utility>

#include "base/mutex.h"
#include "base/status.h"

namespace assay {

class WorkGate {
 public:
  // Held by a request from acceptance to its last message.
  class Ticket {
   public:
    Ticket() = default;
    explicit Ticket(WorkGate* gate) : gate_(gate) {}
    Ticket(Ticket&& other) noexcept : gate_(std::exchange(other.gate_, nullptr)) {}
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(gate_, other.gate_);
      return *this;
    }
    ~Ticket() {
      if (gate_ != nullptr) gate_->Leave();
    }

   private:
    WorkGate* gate_ = nullptr;
  };

  absl::StatusOr<Ticket> Enter() ABSL_LOCKS_EXCLUDED(mu_);  // Unavailable: draining
  void Close() ABSL_LOCKS_EXCLUDED(mu_);
  bool closed() const ABSL_LOCKS_EXCLUDED(mu_);
  int active() const ABSL_LOCKS_EXCLUDED(mu_);
  // True when nothing is active; false when `until` passed first.
  bool WaitIdle(std::chrono::steady_clock::time_point until) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Leave() ABSL_LOCKS_EXCLUDED(mu_);

  mutable Mutex mu_;
  CondVar idle_;
  int active_ ABSL_GUARDED_BY(mu_) = 0;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace assay
