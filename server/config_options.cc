// The table of options, and how text becomes a value.
#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "server/config.h"

namespace assay {
namespace {

absl::Status Expected(std::string_view text, std::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", std::string(text), "' is not ", std::string(what)));
}

// The functions below make a row out of an accessor: a function ServerConfig& -> T&.
template <typename Access>
ConfigOption Text(std::string key, std::string help, Access access) {
  return {
      std::move(key), std::move(help),
      [access](ServerConfig& config, std::string_view text) {
        access(config) = std::string(text);
        return absl::OkStatus();
      },
      [access](const ServerConfig& config) { return access(const_cast<ServerConfig&>(config)); }};
}

// A name, or an IP address; what has an address's form must be one.
template <typename Access>
ConfigOption Address(std::string key, std::string help, Access access) {
  return {
      std::move(key), std::move(help),
      [access](ServerConfig& config, std::string_view text) {
        std::string host(text);
        if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
          host = host.substr(1, host.size() - 2);
        }
        in6_addr bytes{};  // room for both kinds
        const bool name = std::all_of(host.begin(), host.end(), [](char c) {
          return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-';
        });
        const bool digits = host.find_first_not_of("0123456789.") == std::string::npos;
        const bool good = digits ? inet_pton(AF_INET, host.c_str(), &bytes) == 1
                                 : name || inet_pton(AF_INET6, host.c_str(), &bytes) == 1;
        if (!good) return Expected(text, "an IP address or a host name, such as 127.0.0.1");
        access(config) = std::string(text);
        return absl::OkStatus();
      },
      [access](const ServerConfig& config) { return access(const_cast<ServerConfig&>(config)); }};
}

// Texts with commas between them; of an empty text there are none.
template <typename Access>
ConfigOption List(std::string key, std::string help, Access access) {
  return {std::move(key), std::move(help),
          [access](ServerConfig& config, std::string_view text) {
            access(config) = absl::StrSplit(std::string(text), ',', absl::SkipWhitespace());
            for (std::string& one : access(config)) absl::StripAsciiWhitespace(&one);
            return absl::OkStatus();
          },
          [access](const ServerConfig& config) {
            return absl::StrJoin(access(const_cast<ServerConfig&>(config)), ",");
          }};
}

template <typename Access>
ConfigOption Integer(std::string key, std::string help, int low, int high, Access access) {
  return {std::move(key), std::move(help),
          [access, low, high](ServerConfig& config, std::string_view text) {
            int value = 0;
            if (!absl::SimpleAtoi(std::string(text), &value) || value < low || value > high) {
              return Expected(text, absl::StrCat("a whole number from ", low, " to ", high));
            }
            access(config) = value;
            return absl::OkStatus();
          },
          [access](const ServerConfig& config) {
            return absl::StrCat(access(const_cast<ServerConfig&>(config)));
          }};
}

template <typename Access>
ConfigOption Number(std::string key, std::string help, double low, double high, Access access) {
  return {std::move(key), std::move(help),
          [access, low, high](ServerConfig& config, std::string_view text) {
            double value = 0;
            if (!absl::SimpleAtod(std::string(text), &value) || !(value >= low && value <= high)) {
              return Expected(text, absl::StrCat("a number from ", low, " to ", high));
            }
            access(config) = value;
            return absl::OkStatus();
          },
          [access](const ServerConfig& config) {
            return absl::StrCat(access(const_cast<ServerConfig&>(config)));
          }};
}

template <typename Access>
ConfigOption Boolean(std::string key, std::string help, Access access) {
  return {std::move(key), std::move(help),
          [access](ServerConfig& config, std::string_view text) {
            if (text != "true" && text != "false") return Expected(text, "true or false");
            access(config) = text == "true";
            return absl::OkStatus();
          },
          [access](const ServerConfig& config) {
            return std::string(access(const_cast<ServerConfig&>(config)) ? "true" : "false");
          }};
}

constexpr std::pair<std::string_view, int> kUnits[] = {
    {"", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};

absl::Status ParseBytes(std::string_view text, uint64_t& out) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc()) {
    std::string_view unit = text.substr(end - text.data());
    while (!unit.empty() && unit.front() == ' ') unit.remove_prefix(1);
    for (const auto& [name, shift] : kUnits) {
      if (unit != name || (number << shift) >> shift != number) continue;
      out = number << shift;
      return absl::OkStatus();
    }
  }
  return Expected(text, "a size such as 1048576, 64MiB or 2GiB");
}

std::string ShowBytes(uint64_t bytes) {
  int unit = 0;
  while (unit + 1 < static_cast<int>(std::size(kUnits)) && bytes != 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrCat(bytes, std::string(kUnits[unit].first));
}

template <typename Access>
ConfigOption Bytes(std::string key, std::string help, Access access) {
  return {std::move(key), std::move(help),
          [access](ServerConfig& config, std::string_view text) {
            uint64_t value = 0;
            RETURN_IF_ERROR(ParseBytes(text, value));
            access(config) = value;
            return absl::OkStatus();
          },
          [access](const ServerConfig& config) {
            return ShowBytes(access(const_cast<ServerConfig&>(config)));
          }};
}

template <typename Access>
ConfigOption Time(std::string key, std::string help, Access access) {
  return {std::move(key), std::move(help),
          [access](ServerConfig& config, std::string_view text) {
            absl::Duration value;
            // int32 milliseconds is what gRPC's channel arguments hold.
            if (!absl::ParseDuration(std::string(text), &value) || value < absl::ZeroDuration() ||
                value > absl::Hours(24 * 24)) {
              return Expected(text, "a duration such as 500ms, 30s or 15m (at most 576h)");
            }
            access(config) = value;
            return absl::OkStatus();
          },
          [access](const ServerConfig& config) {
            return absl::FormatDuration(access(const_cast<ServerConfig&>(config)));
          }};
}

template <typename E>
struct Choice {
  const char* name;
  E value;
};
template <typename E, size_t N, typename Access>
ConfigOption OneOf(std::string key, std::string help, const Choice<E> (&choices)[N],
                   Access access) {
  const std::vector<Choice<E>> all(choices, choices + N);
  return {std::move(key), std::move(help),
          [access, all](ServerConfig& config, std::string_view text) {
            std::vector<std::string> names;
            for (const Choice<E>& choice : all) {
              names.push_back(choice.name);
              if (text != choice.name) continue;
              access(config) = choice.value;
              return absl::OkStatus();
            }
            return Expected(text, absl::StrCat("one of ", absl::StrJoin(names, ", ")));
          },
          [access, all](const ServerConfig& config) {
            for (const Choice<E>& choice : all) {
              if (access(const_cast<ServerConfig&>(config)) == choice.value) {
                return std::string(choice.name);
              }
            }
            return std::string();
          }};
}

constexpr Choice<AdminAccess> kAdmin[] = {
    {"auto", AdminAccess::kAuto}, {"true", AdminAccess::kOn}, {"false", AdminAccess::kOff}};
constexpr Choice<LogLevel> kLevels[] = {{"debug", LogLevel::kDebug},
                                        {"info", LogLevel::kInfo},
                                        {"warning", LogLevel::kWarning},
                                        {"error", LogLevel::kError}};
constexpr Choice<LogFormat> kFormats[] = {{"text", LogFormat::kText}, {"json", LogFormat::kJson}};

constexpr Choice<DriftAction> kDriftActions[] = {{"alert", DriftAction::kAlert},
                                                 {"refresh", DriftAction::kRefresh},
                                                 {"raise_precision", DriftAction::kRaisePrecision},
                                                 {"roll_back", DriftAction::kRollBack},
                                                 {"serve_reference", DriftAction::kServeReference}};

#define ASSAY_FIELD(member) \
  [](ServerConfig & c) -> auto& { return c.member; }

std::vector<ConfigOption> GeneralOptions() {
  return {
      Address("listen", "Address of both ports", ASSAY_FIELD(listen)),
      Integer("grpc_port", "gRPC port; 0 takes a free one", 0, 65535, ASSAY_FIELD(grpc_port)),
      Integer("http_port", "HTTP port of /metrics, /healthz, /readyz; 0 takes a free one", 0, 65535,
              ASSAY_FIELD(http_port)),
      Integer("health_port",
              "Plaintext port of gRPC health alone, for probes; 0: a free one, -1: none", -1, 65535,
              ASSAY_FIELD(health_port)),
      Integer("admin_port", "gRPC port with administration; 0: a free one, -1: none", -1, 65535,
              ASSAY_FIELD(admin_port)),
      Address("admin_listen", "Address of admin_port", ASSAY_FIELD(admin_listen)),
      Text("model_repository", "Folder whose models are admitted at start",
           ASSAY_FIELD(model_repository)),
      List("model_roots", "Folders, with commas, whence models may be admitted by RPC, too",
           ASSAY_FIELD(model_roots)),
      Text("cache_dir", "Folder of quantized artifacts; 'none' switches the cache off",
           ASSAY_FIELD(cache_dir)),
      Text("policy", "Policy file; empty: the built-in one", ASSAY_FIELD(policy)),
      Text("evaluation_text", "Held-out text for verification; empty: the bundled one",
           ASSAY_FIELD(evaluation_text)),
      Text("calibration", "Calibration data where a recipe names none; empty: the bundled text",
           ASSAY_FIELD(calibration)),
      Integer("threads", "Compute threads; 0: one per core", 0, 1024, ASSAY_FIELD(threads)),
      Bytes("memory_limit", "Most memory an admission may plan with; 0: what the host has",
            ASSAY_FIELD(memory_limit_bytes)),
      Boolean("strict_readiness", "Ready only when every model found at start serves",
              ASSAY_FIELD(strict_readiness)),
      OneOf("admin",
            "Administration by the data port, too: auto (loopback without tokens), true, false",
            kAdmin, ASSAY_FIELD(admin)),
      Time("drain_timeout", "How long requests may finish after SIGTERM",
           ASSAY_FIELD(drain_timeout)),
      OneOf("log_level", "debug, info, warning, error", kLevels, ASSAY_FIELD(log_level)),
      OneOf("log_format", "text, json", kFormats, ASSAY_FIELD(log_format)),
  };
}

std::vector<ConfigOption> AccessOptions() {
  return {
      Text("tls.certificate", "PEM file of the server's certificate and its chain; empty: no TLS",
           ASSAY_FIELD(tls.certificate)),
      Text("tls.key", "PEM file of its private key", ASSAY_FIELD(tls.key)),
      Text("tls.client_ca", "PEM file: clients need a certificate that it signed; empty: none",
           ASSAY_FIELD(tls.client_ca)),
      Time("tls.reload_interval", "How often these files and auth.tokens are looked at; 0: never",
           ASSAY_FIELD(tls_reload_interval)),
      Text("auth.tokens", "File of the clients' tokens, hashed; empty: nobody is asked for one",
           ASSAY_FIELD(auth.tokens)),
      Integer("auth.max_concurrent", "Inference requests of a client at once; 0: no bound", 0,
              1 << 20, ASSAY_FIELD(auth.max_concurrent)),
      Number("auth.tokens_per_minute", "Prompt and generated tokens of a client; 0: no bound", 0,
             1e12, ASSAY_FIELD(auth.tokens_per_minute)),
      Integer("limits.max_connections", "Connections to one port at once", 1, 1 << 20,
              ASSAY_FIELD(limits.max_connections)),
      Integer("limits.max_connections_per_address", "Of one address, or /64 of IPv6; 0: no bound",
              0, 1 << 20, ASSAY_FIELD(limits.max_connections_per_address)),
      Time("limits.handshake_timeout",
           "For TLS, the first bytes, a header block, the head of an HTTP request; above 0",
           ASSAY_FIELD(limits.handshake_timeout)),
      Bytes("limits.max_header_size",
            "Of one HTTP/2 header block, of an HTTP request; at least 1KiB",
            ASSAY_FIELD(limits.http2.max_header_bytes)),
      Number("limits.max_resets_per_second", "Streams of a connection that its client resets", 1,
             1e6, ASSAY_FIELD(limits.http2.max_resets_per_second)),
      Time("limits.max_unread_time",
           "An RPC is cut when its client has not taken an answer for so long; 0: never",
           ASSAY_FIELD(max_unread_time)),
      Number("limits.memory_watermark",
             "Share of the memory above which requests are refused; 0: none", 0, 1,
             ASSAY_FIELD(memory_watermark)),
  };
}

std::vector<ConfigOption> GrpcOptions() {
  return {
      Bytes("grpc.max_message_size", "Largest request message",
            ASSAY_FIELD(grpc.max_message_bytes)),
      Integer("grpc.max_concurrent_streams", "RPCs at once on one connection", 1, 1 << 20,
              ASSAY_FIELD(grpc.max_concurrent_streams)),
      Integer("grpc.max_requests_per_stream",
              "Unanswered requests of one ModelStreamInfer stream; more wait in the network", 1,
              1 << 16, ASSAY_FIELD(grpc.max_requests_per_stream)),
      Bytes("grpc.memory_quota", "Bound of gRPC's own buffers; at most a quarter of the memory",
            ASSAY_FIELD(grpc.memory_quota_bytes)),
      Time("grpc.keepalive_time", "Ping a silent client after", ASSAY_FIELD(grpc.keepalive_time)),
      Time("grpc.keepalive_timeout", "Drop it when the ping is not answered within",
           ASSAY_FIELD(grpc.keepalive_timeout)),
      Time("grpc.min_ping_interval", "Clients may ping this often",
           ASSAY_FIELD(grpc.min_ping_interval)),
      Time("grpc.max_connection_idle", "Close a connection without RPCs after; 0: never",
           ASSAY_FIELD(grpc.max_connection_idle)),
      Time("grpc.max_connection_age", "Ask clients to reconnect after; 0: never",
           ASSAY_FIELD(grpc.max_connection_age)),
      Time("grpc.max_connection_age_grace", "Cut what still runs on an aged connection after",
           ASSAY_FIELD(grpc.max_connection_age_grace)),
      Boolean("grpc.reflection", "Serve gRPC server reflection", ASSAY_FIELD(grpc.reflection)),
  };
}

std::vector<ConfigOption> EngineOptionsTable() {
  return {
      Integer("engine.max_sequences", "Requests of one model that run at once", 1, 4096,
              ASSAY_FIELD(engine.max_sequences)),
      Integer("engine.max_step_tokens", "Tokens of one step of text generation", 1, 1 << 16,
              ASSAY_FIELD(engine.max_step_tokens)),
      Integer("engine.max_queue", "Waiting requests of one model; more get RESOURCE_EXHAUSTED", 1,
              1 << 20, ASSAY_FIELD(engine.max_queue)),
      Time("engine.max_queue_wait",
           "A request that would wait longer gets RESOURCE_EXHAUSTED at once; 0: no bound",
           ASSAY_FIELD(engine.max_queue_wait)),
      Bytes("engine.kv_cache", "KV cache of one model", ASSAY_FIELD(engine.kv_bytes)),
      Integer("engine.max_context", "Longest prompt plus answer; 0: the model's", 0, 1 << 24,
              ASSAY_FIELD(engine.max_context)),
      Boolean("engine.prefix_cache", "Reuse the KV cache of common prompt prefixes",
              ASSAY_FIELD(engine.prefix_cache)),
      Integer("engine.max_batch_tokens", "Tokens of one batch of an encoder", 1, 1 << 20,
              ASSAY_FIELD(engine.max_batch_tokens)),
      Time("engine.max_batch_delay", "How long an encoder's batch waits for company",
           ASSAY_FIELD(engine.max_delay)),
  };
}

std::vector<ConfigOption> GpuOptionsTable() {
  return {
      Text("gpu.devices", "auto: all that there are; none; or names: cuda:0,cuda:1",
           ASSAY_FIELD(gpu_devices)),
      Text("gpu.profile", "Play a weaker GPU, to try its paths: sm75, sm80, sm86, ...; empty: none",
           ASSAY_FIELD(gpu_profile)),
      Bytes("gpu.kv_cache", "KV cache of a model on a GPU; 0: what is left of its memory",
            ASSAY_FIELD(gpu_kv_bytes)),
  };
}

std::vector<ConfigOption> DriftOptionsTable() {
  return {
      Number("drift.rate", "Share of the requests that the reference computes again; 0: none", 0, 1,
             ASSAY_FIELD(drift.sampler.rate)),
      Number("drift.floor_per_hour", "Requests of a model per hour at least, when so many come", 0,
             1e6, ASSAY_FIELD(drift.sampler.floor_per_hour)),
      Number("drift.cpu_share", "Of all cores at most, for computing again", 1e-6, 1,
             ASSAY_FIELD(drift.cpu_share)),
      Number("drift.tokens_per_second", "Computed again at most, on average", 1, 1e9,
             ASSAY_FIELD(drift.tokens_per_second)),
      Integer("drift.positions", "Compared per request", 1, 128, ASSAY_FIELD(drift.max_positions)),
      Number("drift.tolerance",
             "The limit is so many times what admission measured, the policy's budget at most", 1,
             1e6, ASSAY_FIELD(drift.tolerance)),
      Number("drift.alpha", "Chance of calling a good version VIOLATED for its mean", 1e-12, 0.5,
             ASSAY_FIELD(drift.alpha)),
      OneOf(
          "drift.action",
          "When a version is VIOLATED: alert, refresh, raise_precision, roll_back, serve_reference",
          kDriftActions, ASSAY_FIELD(drift_action)),
      Time("drift.action_interval",
           "Between one action for a model and the next, doubled each time within a day",
           ASSAY_FIELD(drift_action_interval)),
      Integer("drift.calibration_requests",
              "Prompts kept in memory, for refresh and raise_precision to calibrate with; 0: none",
              0, 4096, ASSAY_FIELD(drift.calibration_requests)),
  };
}

std::vector<ConfigOption> VersionOptionsTable() {
  return {
      Time(
          "versions.rollback_window",
          "How long a version that was replaced stays loaded, for a rollback; 0: it drains at once",
          ASSAY_FIELD(versions.rollback_window)),
      Integer("versions.promote_min_samples",
              "Requests of a canary that were compared with the reference before it is promoted", 1,
              1000000, ASSAY_FIELD(versions.promote_min_samples)),
      Boolean("versions.auto_promote", "Promote a canary as soon as the conditions hold",
              ASSAY_FIELD(versions.auto_promote)),
  };
}

#undef ASSAY_FIELD

}  // namespace

std::string ConfigOption::flag() const {
  return absl::StrCat("--", absl::StrReplaceAll(key, {{".", "-"}, {"_", "-"}}));
}

std::string ConfigOption::environment() const {
  return absl::StrCat("ASSAY_", absl::AsciiStrToUpper(absl::StrReplaceAll(key, {{".", "_"}})));
}

std::span<const ConfigOption> AllConfigOptions() {
  static const std::vector<ConfigOption>& all = *[] {
    auto* options = new std::vector<ConfigOption>(GeneralOptions());
    for (const auto& section : {AccessOptions(), GrpcOptions(), EngineOptionsTable(),
                                GpuOptionsTable(), DriftOptionsTable(), VersionOptionsTable()}) {
      options->insert(options->end(), section.begin(), section.end());
    }
    return options;
  }();
  return all;
}

}  // namespace assay
