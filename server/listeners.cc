#include "server/listeners.h"

#include <grpcpp/server_posix.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/log.h"

namespace assay {
namespace {

std::function<void(int)> GiveTo(grpc::Server& server) {
  return [&server](int fd) { grpc::AddInsecureChannelFromFd(&server, fd); };
}

std::string Date(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone());
}

}  // namespace

absl::StatusOr<std::unique_ptr<Listeners>> Listeners::Start(const ServerConfig& config,
                                                            grpc::Server& data,
                                                            grpc::Server* health) {
  std::unique_ptr<Listeners> listeners(new Listeners);
  FrontOptions options = {
      .address = config.listen, .port = config.grpc_port, .limits = config.limits};
  if (config.has_tls()) {
    ASSIGN_OR_RETURN(listeners->tls_, TlsStore::Load(config.tls));
    options.tls = listeners->tls_.get();
  }
  ASSIGN_OR_RETURN(listeners->data_, Front::Start(options, GiveTo(data)));
  if (health != nullptr) {
    options.port = config.health_port;
    options.tls = nullptr;
    ASSIGN_OR_RETURN(listeners->health_, Front::Start(options, GiveTo(*health)));
  }
  if (listeners->tls_ != nullptr && config.tls_reload_interval > absl::ZeroDuration())
    listeners->fresh_ = std::thread(
        [one = listeners.get(), every = config.tls_reload_interval] { one->KeepFresh(every); });
  return listeners;
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
    const absl::StatusOr<bool> changed = tls_->Reload();
    if (!changed.ok()) {
      if (std::string now(changed.status().message()); now != failure)
        Log(LogLevel::kError, "the certificate is not renewed; the old one stays",
            {{"reason", failure = now}, {"expires", Date(tls_->expiry())}});
      continue;
    }
    failure.clear();
    if (*changed) Log(LogLevel::kInfo, "certificate renewed", {{"expires", Date(tls_->expiry())}});
  }
}

ConnectionReading Listeners::Read() const {
  FrontCounts all = data_->counts();
  if (health_ != nullptr) all += health_->counts();
  ConnectionReading reading = {.open = all.open,
                               .refused = {{"too_many", all.too_many},
                                           {"no_descriptor", all.no_descriptor},
                                           {"not_http2", all.not_http2},
                                           {"handshake", all.handshake},
                                           {"too_slow", all.too_slow},
                                           {"limit", all.limit},
                                           {"not_taken", all.not_taken}}};
  if (tls_ != nullptr) reading.certificate_expiry = tls_->expiry();
  return reading;
}

void Listeners::StopAccepting() {
  data_->StopAccepting();
  if (health_ != nullptr) health_->StopAccepting();
}

}  // namespace assay
