#include "server/work_gate.h"

namespace assay {

absl::StatusOr<WorkGate::Ticket> WorkGate::Enter() {
  if (check_ && !closed()) RETURN_IF_ERROR(check_());
  MutexLock lock(mu_);
  if (closed_) return absl::UnavailableError("the server is draining");
  ++active_;
  return Ticket(this);
}

void WorkGate::Close() {
  MutexLock lock(mu_);
  closed_ = true;
}

bool WorkGate::closed() const {
  MutexLock lock(mu_);
  return closed_;
}

int WorkGate::active() const {
  MutexLock lock(mu_);
  return active_;
}

bool WorkGate::WaitIdle(std::chrono::steady_clock::time_point until) {
  MutexLock lock(mu_);
  while (active_ > 0) {
    if (!idle_.WaitUntil(mu_, until) && active_ > 0) return false;
  }
  return true;
}

void WorkGate::Leave() {
  MutexLock lock(mu_);
  // Notified under the lock: the waiter may destroy the gate as soon as it sees 0.
  if (--active_ == 0) idle_.NotifyAll();
}

}  // namespace assay
