// SIGTERM and SIGINT as something to wait for. Made before other threads start, so that they
// inherit the blocked mask.
#pragma once
#include <csignal>

#include "absl/time/time.h"

namespace assay {

class SignalWatcher {
 public:
  SignalWatcher();
  // True when one of the signals came within `timeout`.
  bool WaitFor(absl::Duration timeout) const;
  // From now on a signal ends the process at once, with code 1.
  void ExitOnNext() const;

 private:
  sigset_t set_;
};

}  // namespace assay
