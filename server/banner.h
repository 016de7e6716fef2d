// What the server says about itself on stderr while it starts.
#pragma once
#include <string>
#include <vector>

#include "engine/lifecycle/admission.h"
#include "server/config.h"

namespace assay {

// "AMD EPYC 7763 (avx2), 2 cores, 7.8 GiB; no GPU".
std::string HardwareLine(const HardwareInfo& hardware);

// Version, hardware, the rule that the policy chooses here and why, threads, addresses.
std::string StartBanner(const ServerConfig& config, const Policy& policy,
                        const HardwareInfo& hardware, int threads);

// One model that has had its verdict: scheme, bytes before and after, verification figures, time.
std::string ModelLine(const AdmissionProgress& progress, absl::Duration elapsed);

struct ServerPorts {
  int grpc = 0, http = 0;
  int health = 0, admin = 0;  // 0: none
};
// Where they are, as soon as they are bound.
std::string AddressLine(const ServerConfig& config, const ServerPorts& ports);

struct ReadyModel {
  std::string name;
  ModelTask task = ModelTask::kGenerate;
};
// What came of the models found at start.
struct StartupOutcome {
  std::vector<ReadyModel> serving;
  std::vector<std::string> not_serving;  // names
  std::vector<std::string> obstacles;    // Readiness::Obstacles
  absl::Duration elapsed;
};
// ServerPorts, what keeps the server from being ready, time, and three commands to try next.
std::string ReadyBanner(const ServerConfig& config, const ServerPorts& ports,
                        const StartupOutcome& outcome);

// What is open to those who can reach a port; nothing for loopback.
std::vector<std::string> ExposureWarnings(const ServerConfig& config);

}  // namespace assay
