#include "server/banner.h"

#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace assay {
namespace {

std::string Mebibytes(uint64_t bytes) {
  return absl::StrFormat("%.1f MiB", static_cast<double>(bytes) / (1 << 20));
}

// What was measured, empty when nothing was: a model may be rejected before it is verified.
std::string Figures(const AdmissionReport& report) {
  const VerificationResult& v = report.verification;
  if (v.documents == 0) return "";
  if (report.task == "generate") {
    return absl::StrFormat("; mean KL %.5f, top-1 %.2f %%, perplexity x%.4f", v.mean_kl.mean,
                           100 * v.top1_agreement.mean, v.perplexity_ratio);
  }
  if (report.task == "embed") {
    return absl::StrFormat("; mean cosine %.5f (min %.5f)", v.cosine.mean, v.cosine_min);
  }
  return absl::StrFormat("; labels agree %.2f %%", 100 * v.label_agreement);
}

// Bytes after are known once the model has been quantized.
std::string Weights(const AdmissionReport& report) {
  if (report.bytes_f32 == 0) return "";
  if (report.bytes == 0) return absl::StrCat(", weights ", Mebibytes(report.bytes_f32), " in f32");
  return absl::StrFormat(
      ", weights %s -> %s (%.0f %%)", Mebibytes(report.bytes_f32), Mebibytes(report.bytes),
      100.0 * static_cast<double>(report.bytes) / static_cast<double>(report.bytes_f32));
}

std::string Address(const std::string& host, int port) { return absl::StrCat(host, ":", port); }

}  // namespace

std::string HardwareLine(const HardwareInfo& hardware) {
  std::string out =
      absl::StrFormat("%s (%s), %d %s, %.1f GiB", hardware.cpu_model, hardware.cpu_isa,
                      hardware.cores, hardware.cores == 1 ? "core" : "cores",
                      static_cast<double>(hardware.memory_bytes) / (uint64_t{1} << 30));
  if (hardware.gpus.empty()) {
    return absl::StrCat(out, "; no GPU in use", hardware.why_no_gpu.empty() ? "" : ": ",
                        hardware.why_no_gpu);
  }
  for (const GpuInfo& gpu : hardware.gpus) {
    absl::StrAppend(&out, "; ", gpu.name, " (sm_", gpu.compute_capability, ")",
                    gpu.unusable.empty() ? "" : ", not in use: ", gpu.unusable);
  }
  return out;
}

std::string StartBanner(const ServerConfig& config, const Policy& policy,
                        const HardwareInfo& hardware, int threads) {
  std::string out = absl::StrCat("assay-server ", ASSAY_VERSION, "\n  hardware  ",
                                 HardwareLine(hardware), "; compute threads: ", threads, "\n");
  const auto decision = policy.Choose(hardware, /*model_bytes_f32=*/0);
  if (decision.ok()) {
    absl::StrAppend(&out, "  policy    ", policy.origin(), ": rule '", decision->rule, "' -> ",
                    decision->recipe.scheme, "/", std::string(Name(decision->recipe.activation)),
                    " on ", decision->device, "\n");
    size_t no_gpu = 0;  // rules for GPUs: one line for all of them
    for (const std::string& line : decision->trace) {
      if (absl::EndsWith(line, ": no CUDA device here")) {
        ++no_gpu;
      } else {
        absl::StrAppend(&out, "            ", line, "\n");
      }
    }
    if (no_gpu > 0)
      absl::StrAppend(&out, "            ", no_gpu, " GPU rules: no CUDA device here\n");
  } else {
    absl::StrAppend(&out, "  policy    ", policy.origin(), ": ",
                    std::string(decision.status().message()), "\n");
  }
  absl::StrAppend(&out, "  models    ",
                  config.model_repository.empty() ? "no repository; use `assay admit PATH`"
                                                  : config.model_repository,
                  "\n  artifacts ", config.cache_dir, "\n");
  return out;
}

std::string ModelLine(const AdmissionProgress& progress, absl::Duration elapsed) {
  const std::string seconds = absl::StrFormat("%.2f s", absl::ToDoubleSeconds(elapsed));
  const std::string name = absl::StrCat("  ", progress.name, ":", progress.version, "  ");
  if (progress.report == nullptr) {
    return absl::StrCat(name, "FAILED after ", seconds, ": ",
                        std::string(progress.status.message()), "\n");
  }
  const AdmissionReport& report = *progress.report;
  const Recipe& recipe = report.decision.recipe;
  std::string out = absl::StrCat(name,
                                 progress.status.ok()         ? "SERVING"
                                 : report.verdict == "failed" ? "FAILED"
                                                              : "REJECTED",
                                 " after ", seconds, ": ", ServedPrecision(report), Weights(report),
                                 Figures(report));
  if (report.fallback_fraction > 0) {
    absl::StrAppend(&out, absl::StrFormat("; %.0f %% of the linear layers kept in %s",
                                          100 * report.fallback_fraction, recipe.fallback_scheme));
  }
  if (report.artifact_cache_hit) absl::StrAppend(&out, "; from the artifact cache");
  if (!progress.status.ok()) absl::StrAppend(&out, "\n      ", report.reason);
  return out + "\n";
}

std::string AddressLine(const ServerConfig& config, const ServerPorts& ports) {
  std::string out =
      absl::StrCat("  gRPC      ", Address(config.listen, ports.grpc),
                   !config.has_tls()              ? ""
                   : config.tls.client_ca.empty() ? "  (TLS)"
                                                  : "  (TLS, clients have certificates)",
                   "\n  HTTP      ", Address(config.listen, ports.http),
                   "  (status page; /metrics /healthz /readyz)\n");
  if (ports.health > 0)
    absl::StrAppend(&out, "  health    ", Address(config.listen, ports.health), "\n");
  if (ports.admin > 0)
    absl::StrAppend(&out, "  admin     ", Address(config.admin_listen, ports.admin),
                    "  (admit, load, unload, versions)\n");
  return out;
}

namespace {

// What a command needs besides the address.
std::string Credentials(const ServerConfig& config) {
  return absl::StrCat(config.has_tls() ? " --ca FILE" : "",
                      config.auth.tokens.empty() ? "" : " --token-file FILE");
}

std::string CurlMetrics(const ServerConfig& config, const std::string& address) {
  return absl::StrCat("curl ",
                      config.auth.tokens.empty() ? "" : "--header 'authorization: Bearer TOKEN' ",
                      config.has_tls() ? "--cacert FILE https://" : "http://", address, "/metrics");
}

// Where nothing can be administered from outside, as it would be.
std::string AdmitCommand(const ServerConfig& config, const ServerPorts& ports) {
  const std::string path = Credentials(config) + " PATH";
  if (ports.admin == 8003) return "assay admit" + path;
  const bool admin = ports.admin != 0;
  return absl::StrCat(
      "assay admit ", admin ? "--admin-server " : "--server ",
      admin ? Address(config.admin_listen, ports.admin) : Address(config.listen, ports.grpc), path);
}

}  // namespace

std::string ReadyBanner(const ServerConfig& config, const ServerPorts& ports,
                        const StartupOutcome& outcome) {
  const std::string http = Address(config.listen, ports.http);
  std::string out = AddressLine(config, ports);
  const bool by_default = config.is_loopback() && ports.grpc == 8001;
  const std::string server = absl::StrCat(
      by_default ? "" : " --server " + Address(config.listen, ports.grpc), Credentials(config));
  std::vector<std::string> commands;
  for (const ReadyModel& model : outcome.serving) {
    if (commands.size() == 2) break;
    commands.push_back(
        model.task == ModelTask::kGenerate
            ? absl::StrCat("assay generate", server, " ", model.name, " \"Once upon a time\"")
            : absl::StrCat("assay embed", server, " ", model.name, " \"a sentence\""));
  }
  if (outcome.serving.empty()) {
    for (const std::string& model : outcome.not_serving) {
      if (commands.size() == 2) break;
      commands.push_back(absl::StrCat("assay report", server, " ", model));
    }
  }
  if (commands.empty()) commands.push_back(AdmitCommand(config, ports));
  commands.push_back(absl::StrCat("assay status", server));
  if (commands.size() < 3) commands.push_back(CurlMetrics(config, http));
  for (const std::string& obstacle : outcome.obstacles) {
    absl::StrAppend(&out, "  not ready: ", obstacle, "\n");
  }
  const bool ready = outcome.obstacles.empty();
  absl::StrAppend(&out,
                  absl::StrFormat("%s %.2f s%s; try:\n", ready ? "ready in" : "not ready after",
                                  absl::ToDoubleSeconds(outcome.elapsed),
                                  outcome.serving.empty() ? "; no model serves" : ""));
  for (const std::string& command : commands) absl::StrAppend(&out, "  ", command, "\n");
  return out;
}

std::vector<std::string> ExposureWarnings(const ServerConfig& config) {
  std::vector<std::string> out;
  const bool asks = !config.auth.tokens.empty() || !config.tls.client_ca.empty();
  if (!config.is_loopback() && !config.has_tls())
    out.push_back(
        absl::StrCat("listening on ", config.listen,
                     " without TLS: what clients send can be read and changed on its way, "
                     "tokens too; set tls.certificate and tls.key"));
  if (!config.is_loopback() && !asks)
    out.push_back(absl::StrCat("listening on ", config.listen,
                               ": anybody who can reach this port can use the models; set "
                               "auth.tokens or tls.client_ca"));
  const bool admin_is_far = (config.admin_port >= 0 && !IsLoopback(config.admin_listen)) ||
                            (config.admin_on_data_port() && !config.is_loopback());
  if (admin_is_far && !asks)
    out.push_back(
        "administration is open to anybody who can reach its port; set auth.tokens or "
        "tls.client_ca");
  return out;
}

}  // namespace assay
