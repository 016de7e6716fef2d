#include "server/signals.h"

#include <pthread.h>
#include <unistd.h>

namespace assay {

SignalWatcher::SignalWatcher() {
  std::signal(SIGPIPE, SIG_IGN);
  sigemptyset(&set_);
  sigaddset(&set_, SIGTERM);
  sigaddset(&set_, SIGINT);
  pthread_sigmask(SIG_BLOCK, &set_, nullptr);
}

bool SignalWatcher::WaitFor(absl::Duration timeout) const {
  if (timeout == absl::InfiniteDuration()) {
    int signal = 0;
    return sigwait(&set_, &signal) == 0;
  }
  const timespec wait = absl::ToTimespec(timeout);
  return sigtimedwait(&set_, nullptr, &wait) > 0;
}

void SignalWatcher::ExitOnNext() const {
  struct sigaction action {};
  action.sa_handler = [](int) { _exit(1); };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  pthread_sigmask(SIG_UNBLOCK, &set_, nullptr);
}

}  // namespace assay
