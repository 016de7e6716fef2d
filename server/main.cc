// assay-server: flags, configuration, the server, signals. Exit code 0: clean stop; 1: bad
// configuration (said in one line), or a second signal; 2: the server cannot start.
#include <malloc.h>

#include <cstdio>

#include "absl/synchronization/mutex.h"
#include "server/flags.h"
#include "server/server.h"
#include "server/signals.h"

namespace {

int Say(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "assay-server: %s\n", std::string(status.message()).c_str());
  return exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  // By default big messages are mapped and unmapped each time: 8 to 13 times slower at 1 MB.
  // 32 MiB is the most that glibc takes as a threshold.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);

  // Debian's Abseil is built with its deadlock detector on, which makes gRPC's locks dear.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);

  const assay::Flags flags = assay::ParseFlags(argc, argv);
  if (flags.exit_code) return *flags.exit_code;
  const absl::StatusOr<assay::EffectiveConfig> effective = assay::LoadConfig(flags.sources);
  if (!effective.ok()) return Say(effective.status(), 1);
  for (const std::string& warning : effective->warnings) {
    std::fprintf(stderr, "assay-server: warning: %s\n", warning.c_str());
  }
  const absl::Status files = assay::Server::CheckFiles(effective->config);
  if (!files.ok()) return Say(files, 1);
  if (flags.check_config) {
    std::fputs(assay::Print(*effective).c_str(), stdout);
    return 0;
  }
  assay::ConfigureLog(effective->config.log_level, effective->config.log_format);
  const assay::SignalWatcher signals;  // before any other thread starts
  const auto server = assay::Server::Start(effective->config);
  if (!server.ok()) return Say(server.status(), 2);
  bool announced = false;
  while (!signals.WaitFor(announced ? absl::InfiniteDuration() : absl::Milliseconds(100))) {
    if (announced || !(*server)->WaitForStartup(absl::Now())) continue;
    (*server)->PrintReady();
    announced = true;
  }
  signals.ExitOnNext();
  (*server)->Drain();
  return 0;
}
