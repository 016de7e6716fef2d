// The configuration of the server: one struct, one table of options. Each option has a YAML key
// ("grpc.max_message_size"), a flag (--grpc-max-message-size) and an environment variable
// (ASSAY_GRPC_MAX_MESSAGE_SIZE); a flag wins over the environment, the environment over the file,
// the file over the default. No environment variable is read elsewhere.
//
// Thread rule: called from main before anything else starts.
#pragma once
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "base/log.h"
#include "base/status.h"
#include "engine/lifecycle/drift_options.h"
#include "engine/metrics_drift.h"
#include "engine/runtime/engine.h"
#include "server/front/limits.h"

namespace assay {

struct GrpcLimits {
  uint64_t max_message_bytes = uint64_t{64} << 20;
  int max_concurrent_streams = 256;  // per connection
  int max_requests_per_stream = 64;  // unanswered, of one ModelStreamInfer stream
  uint64_t memory_quota_bytes = uint64_t{2} << 30;
  absl::Duration keepalive_time = absl::Seconds(60);
  absl::Duration keepalive_timeout = absl::Seconds(20);
  absl::Duration min_ping_interval = absl::Seconds(10);
  absl::Duration max_connection_idle = absl::Minutes(15);
  absl::Duration max_connection_age = absl::ZeroDuration();  // 0 = no limit
  absl::Duration max_connection_age_grace = absl::Minutes(10);
  bool reflection = true;
};

// Several versions of a model side by side (docs/operations.md, "Versions").
struct VersionOptions {
  absl::Duration rollback_window = absl::Minutes(15);  // 0 = what is replaced drains at once
  int promote_min_samples = 20;                        // requests compared before a promotion
  bool auto_promote = false;
};

// Clients (docs/operations.md, "Access").
struct AuthOptions {
  std::string tokens;            // file; empty: nobody is asked
  int max_concurrent = 0;        // inference requests in flight per client; 0: no bound
  double tokens_per_minute = 0;  // prompt and generated, per client; 0: no bound
};

enum class AdminAccess { kAuto, kOn, kOff };  // auto: bound to loopback only, and no tokens

bool IsLoopback(const std::string& address);  // cannot be reached from another host

struct ServerConfig {
  std::string listen = "127.0.0.1";
  int grpc_port = 8001, http_port = 8002;  // 0 = any free port
  int health_port = -1;                    // plaintext gRPC health alone; -1 = none
  int admin_port = 8003;                   // gRPC, with administration; -1 = none
  std::string admin_listen = "127.0.0.1";
  std::string model_repository;          // empty = no models at start
  std::vector<std::string> model_roots;  // whence models may be admitted, too
  std::string cache_dir;            // of artifacts; "none" = no cache; empty: LoadConfig fills in
  std::string policy;               // file; empty = built-in
  std::string evaluation_text;      // file; empty = bundled
  std::string calibration;          // file, where a recipe names none; empty = bundled
  int threads = 0;                  // compute; 0 = one per core
  uint64_t memory_limit_bytes = 0;  // 0 = what the host has
  bool strict_readiness = true;
  AdminAccess admin = AdminAccess::kOff;  // on the data port
  absl::Duration drain_timeout = absl::Seconds(30);
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
  TlsFiles tls;
  absl::Duration tls_reload_interval = absl::Seconds(10);  // of auth.tokens, too
  AuthOptions auth;
  FrontLimits limits;
  absl::Duration max_unread_time = absl::Seconds(20);  // of an answer on its way; 0: no bound
  double memory_watermark = 0.95;  // share of the memory above which requests are refused; 0: none
  GrpcLimits grpc;
  std::string gpu_devices = "auto";  // Gpus::Options
  std::string gpu_profile;
  uint64_t gpu_kv_bytes = 0;  // KV cache of a model on a GPU; 0 = what is left there
  EngineOptions engine;
  DriftOptions drift;
  DriftAction drift_action = DriftAction::kAlert;
  absl::Duration drift_action_interval = absl::Minutes(10);  // between actions for one model
  VersionOptions versions;

  bool has_tls() const { return !tls.certificate.empty(); }
  bool is_loopback() const;  // `listen` cannot be reached from another host
  bool admin_on_data_port() const;
  // Paths in RPCs lie below model_repository or model_roots: where tokens are asked for, roots are
  // named or another host can reach a port.
  bool paths_are_confined() const;
};

struct ConfigOption {
  std::string key;   // "grpc.max_message_size"
  std::string help;  // one line, with the unit
  // InvalidArgument: the value and what was expected.
  std::function<absl::Status(ServerConfig&, std::string_view text)> set;
  std::function<std::string(const ServerConfig&)> show;

  std::string flag() const;         // "--grpc-max-message-size"
  std::string environment() const;  // "ASSAY_GRPC_MAX_MESSAGE_SIZE"
};
std::span<const ConfigOption> AllConfigOptions();

struct ConfigSources {
  std::string yaml_path;                     // empty = none
  std::map<std::string, std::string> flags;  // key -> text, those given
  std::function<const char*(const char* name)> environment;
  std::vector<std::string> environment_names = {};  // of all variables, to find misspelt ones
};
struct EffectiveConfig {
  ServerConfig config;
  std::map<std::string, std::string>
      origin;                              // key -> "default", "assay.yaml:7", "ASSAY_...", "--..."
  std::vector<std::string> warnings = {};  // a line each
};
// NotFound: no such file; InvalidArgument: names the origin (file and line), the key, the value and
// what was expected; for an unknown key also the nearest known one.
absl::StatusOr<EffectiveConfig> LoadConfig(const ConfigSources& sources);

// A whole text file. NotFound: "PATH: reason", a folder included.
absl::StatusOr<std::string> ReadConfigFile(const std::string& path);

// "; did you mean 'x'?" with the nearest of the known words; empty when none is near.
std::string DidYouMean(std::string_view given, std::span<const std::string> known);

// Every key with its value and origin, as YAML that LoadConfig reads back.
std::string Print(const EffectiveConfig& config);

// The scalars of a YAML mapping, nested keys joined by dots (server/config_yaml.cc).
struct YamlScalar {
  std::string key, value;
  int line = 0;  // 1-based
};
absl::StatusOr<std::vector<YamlScalar>> FlattenYaml(std::string_view text, std::string_view origin);

}  // namespace assay
