// Counts the requests that were accepted and refuses new ones once the server drains, so that no
// accepted request is lost. Thread-safe.
#pragma once
#include <chrono>
#include <functional>
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

  // Before a request is accepted; its error is the answer. Before the first Enter.
  void AskFirst(std::function<absl::Status()> check) { check_ = std::move(check); }
  // Unavailable: draining; what the check says.
  absl::StatusOr<Ticket> Enter() ABSL_LOCKS_EXCLUDED(mu_);
  void Close() ABSL_LOCKS_EXCLUDED(mu_);
  bool closed() const ABSL_LOCKS_EXCLUDED(mu_);
  int active() const ABSL_LOCKS_EXCLUDED(mu_);
  // True when nothing is active; false when `until` passed first.
  bool WaitIdle(std::chrono::steady_clock::time_point until) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Leave() ABSL_LOCKS_EXCLUDED(mu_);

  std::function<absl::Status()> check_;  // empty: none
  mutable Mutex mu_;
  CondVar idle_;
  int active_ ABSL_GUARDED_BY(mu_) = 0;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace assay
