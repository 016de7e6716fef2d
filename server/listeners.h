// The gRPC ports of the server: each a Front, behind it gRPC without a port of its own. Looks at
// the files of certificates and tokens now and then.
//
// Thread rule: any thread.
#pragma once
#include <grpcpp/server.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "base/mutex.h"
#include "engine/metrics.h"
#include "server/config.h"
#include "server/front/front.h"

namespace assay {

// Raises the process's bound of open files to what is allowed (enough for `limits`), and returns
// the number from which on descriptors are for administration.
int ReserveAdminDescriptors(const FrontLimits& limits);

class Listeners {
 public:
  struct Servers {
    grpc::Server& data;              // everything, by the data and the admin port
    grpc::Server* health = nullptr;  // health alone; null: no such port
    int admin_from_fd = 0;           // what ReserveAdminDescriptors said
    PeerAddresses* addresses = nullptr;
    std::function<void()> tick;  // FrontOptions::tick, of the data port
    // Called as often as files are looked at; may be empty.
    std::function<void()> refresh;
  };
  // `servers` outlive it. InvalidArgument: the certificate cannot be used; Unavailable: a port
  // cannot be bound. Both say why.
  static absl::StatusOr<std::unique_ptr<Listeners>> Start(const ServerConfig& config,
                                                          const Servers& servers);
  ~Listeners();  // cuts what is open

  int data_port() const { return data_->port(); }
  int admin_port() const { return admin_ == nullptr ? 0 : admin_->port(); }  // 0: none
  int health_port() const { return health_ == nullptr ? 0 : health_->port(); }
  // For the HTTP port, kept fresh; null: no TLS.
  std::shared_ptr<const TlsStore> http_tls() const { return http_tls_; }
  // Of all ports. `http`: of the HTTP port, which is not one of these.
  ConnectionReading Read(const FrontCounts& http) const;
  void StopAccepting();

 private:
  Listeners() = default;
  absl::Status StartAdmin(const ServerConfig& config, FrontOptions options,
                          const std::function<void(int)>& serve);
  void KeepFresh(absl::Duration interval) ABSL_LOCKS_EXCLUDED(mu_);
  void RenewCertificate(std::string& failure);
  std::vector<Front*> fronts() const;

  std::unique_ptr<TlsStore> tls_;
  std::shared_ptr<TlsStore> http_tls_;
  std::unique_ptr<Front> data_, admin_, health_;
  std::function<void()> refresh_;
  Mutex mu_;
  CondVar stopping_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread fresh_;
};

}  // namespace assay
