#include "server/listeners.h"

#include <grpcpp/server_posix.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"

namespace assay {
namespace {

constexpr int kAdminDescriptors = 128, kAdminConnections = 64;  // one each, and some to spare

std::function<void(int)> GiveTo(grpc::Server& server) {
  return [&server](int fd) { grpc::AddInsecureChannelFromFd(&server, fd); };
}

std::string Date(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone());
}

}  // namespace

int ReserveAdminDescriptors(const FrontLimits& limits) {
  rlimit open{};
  if (getrlimit(RLIMIT_NOFILE, &open) != 0) open.rlim_cur = open.rlim_max = 1024;
  // A number costs the kernel memory for all below it: no more than is of use.
  const rlim_t useful = std::max<rlim_t>(65536, 4 * static_cast<rlim_t>(limits.max_connections));
  const rlim_t raised = std::max(open.rlim_cur, std::min(open.rlim_max, useful));
  const rlimit wanted{raised, open.rlim_max};
  if (raised > open.rlim_cur && setrlimit(RLIMIT_NOFILE, &wanted) == 0) open.rlim_cur = raised;
  const auto bound = static_cast<int>(std::min<rlim_t>(open.rlim_cur, useful));
  return bound - std::min(kAdminDescriptors, bound / 4);
}

absl::StatusOr<std::unique_ptr<Listeners>> Listeners::Start(const ServerConfig& config,
                                                            const Servers& servers) {
  std::unique_ptr<Listeners> listeners(new Listeners);
  FrontLimits limits = config.limits;
  limits.http2.max_early_streams = config.grpc.max_concurrent_streams;
  FrontOptions options = {.address = config.listen,
                          .port = config.grpc_port,
                          .limits = limits,
                          .end_fd = servers.admin_from_fd,
                          .addresses = servers.addresses};
  if (config.has_tls()) {
    ASSIGN_OR_RETURN(listeners->tls_, TlsStore::Load(config.tls));
    options.tls = listeners->tls_.get();
    ASSIGN_OR_RETURN(listeners->http_tls_, TlsStore::Load(config.tls, TlsStore::kHttp1));
  }
  options.tick = servers.tick;
  ASSIGN_OR_RETURN(listeners->data_, Front::Start(options, GiveTo(servers.data)));
  options.tick = nullptr;
  if (config.admin_port >= 0) {
    options.lowest_fd = servers.admin_from_fd;
    options.end_fd = std::numeric_limits<int>::max();
    RETURN_IF_ERROR(listeners->StartAdmin(config, options, GiveTo(servers.data)));
  }
  if (servers.health != nullptr) {
    FrontOptions plain = {.address = config.listen,
                          .port = config.health_port,
                          .limits = limits,
                          .end_fd = servers.admin_from_fd};
    ASSIGN_OR_RETURN(listeners->health_, Front::Start(plain, GiveTo(*servers.health)));
  }
  listeners->refresh_ = servers.refresh;
  const bool fresh = listeners->tls_ != nullptr || listeners->refresh_;
  if (fresh && config.tls_reload_interval > absl::ZeroDuration())
    listeners->fresh_ = std::thread(
        [one = listeners.get(), every = config.tls_reload_interval] { one->KeepFresh(every); });
  return listeners;
}

absl::Status Listeners::StartAdmin(const ServerConfig& config, FrontOptions options,
                                   const std::function<void(int)>& serve) {
  options.address = config.admin_listen;
  options.port = config.admin_port;
  FrontLimits& limits = options.limits;
  limits.max_connections = std::min(limits.max_connections, kAdminConnections);
  limits.max_connections_per_address = 0;
  absl::StatusOr<std::unique_ptr<Front>> front = Front::Start(options, serve);
  if (!front.ok())
    return absl::UnavailableError(
        absl::StrCat("admin_port=", config.admin_port,
                     " (0: a free one, -1: none): ", std::string(front.status().message())));
  admin_ = *std::move(front);
  return absl::OkStatus();
}

Listeners::~Listeners() {
  {
    const MutexLock lock(mu_);
    stop_ = true;
    stopping_.NotifyAll();
  }
  if (fresh_.joinable()) fresh_.join();
}

void Listeners::KeepFresh(absl::Duration interval) {
  std::string failure;  // said once
  for (;;) {
    const auto next = std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(interval);
    {
      const MutexLock lock(mu_);
      while (!stop_ && stopping_.WaitUntil(mu_, next)) {
      }
      if (stop_) return;
    }
    if (tls_ != nullptr) RenewCertificate(failure);
    if (refresh_) refresh_();
  }
}

void Listeners::RenewCertificate(std::string& failure) {
  absl::StatusOr<bool> changed = tls_->Reload();
  if (changed.ok()) {
    const absl::StatusOr<bool> http = http_tls_->Reload();
    if (!http.ok()) changed = http.status();
  }
  if (!changed.ok()) {
    if (std::string now(changed.status().message()); now != failure)
      Log(LogLevel::kError, "the certificate is not renewed; the old one stays",
          {{"reason", failure = now}, {"expires", Date(tls_->expiry())}});
    return;
  }
  failure.clear();
  if (*changed) Log(LogLevel::kInfo, "certificate renewed", {{"expires", Date(tls_->expiry())}});
}

std::vector<Front*> Listeners::fronts() const {
  std::vector<Front*> all;
  for (const auto* front : {&data_, &admin_, &health_})
    if (*front != nullptr) all.push_back(front->get());
  return all;
}

ConnectionReading Listeners::Read(const FrontCounts& http) const {
  FrontCounts all = http;
  for (const Front* const front : fronts()) all += front->counts();
  ConnectionReading reading = {.open = all.open - http.open,
                               .open_http = http.open,
                               .refused = {{"too_many", all.too_many},
                                           {"no_descriptor", all.no_descriptor},
                                           {"not_http2", all.not_http2},
                                           {"handshake", all.handshake},
                                           {"too_slow", all.too_slow},
                                           {"limit", all.limit},
                                           {"not_taken", all.not_taken}}};
  if (tls_ == nullptr) return reading;
  reading.certificate_expiry.emplace_back("server", tls_->expiry());
  if (tls_->asks_clients())
    reading.certificate_expiry.emplace_back("client_ca", tls_->client_ca_expiry());
  return reading;
}

void Listeners::StopAccepting() {
  for (Front* const front : fronts()) front->StopAccepting();
}

}  // namespace assay
