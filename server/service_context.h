// What every service works with. All of it outlives the gRPC server.
#pragma once
#include "base/clock.h"
#include "engine/lifecycle/admission.h"
#include "engine/lifecycle/registry.h"
#include "server/access.h"
#include "server/config.h"
#include "server/front/peer_addresses.h"
#include "server/quotas.h"
#include "server/readiness.h"
#include "server/statistics.h"
#include "server/text_workers.h"
#include "server/traffic_history.h"
#include "server/version_control.h"
#include "server/work_gate.h"

namespace assay {

struct ServiceContext {
  const ServerConfig& config;
  const Policy& policy;
  const Gpus& gpus;
  const Clock& clock;     // for how long things take, and deadlines
  const Clock& calendar;  // for what people read: it may be set while the server runs
  ModelRegistry& registry;
  AdmissionPipeline& admissions;
  Metrics& metrics;
  WorkGate& gate;
  Readiness& readiness;
  Statistics& statistics;
  TrafficHistory& traffic;
  TextWorkers& texts;
  DriftMonitor& drift;
  EventLog& events;
  VersionControl& versions;
  const AccessControl& access;
  Quotas& quotas;
  const PeerAddresses& peers;
};

inline constexpr std::string_view kServerVersion = ASSAY_VERSION;

}  // namespace assay
