#include "tests/e2e/serve_with_hooks.h"

#include <cstdio>

#include "server/flags.h"
#include "server/server.h"
#include "server/signals.h"

namespace assay {

int ServeWithHooks(int argc, char** argv, const AdmissionHooks& hooks) {
  const Flags flags = ParseFlags(argc, argv);
  if (flags.exit_code) return *flags.exit_code;
  const absl::StatusOr<EffectiveConfig> effective = LoadConfig(flags.sources);
  if (!effective.ok()) {
    std::fprintf(stderr, "%s\n", std::string(effective.status().message()).c_str());
    return 1;
  }
  const SignalWatcher signals;
  const auto server = Server::Start(effective->config, &hooks);
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", std::string(server.status().message()).c_str());
    return 2;
  }
  bool announced = false;
  while (!signals.WaitFor(announced ? absl::InfiniteDuration() : absl::Milliseconds(100))) {
    if (announced || !(*server)->WaitForStartup(absl::Now())) continue;
    (*server)->PrintReady();
    announced = true;
  }
  (*server)->Drain();
  return 0;
}

}  // namespace assay
