// The gRPC ports of the server: each a Front, behind it gRPC without a port of its own. Keeps the
// certificate fresh.
//
// Thread rule: any thread.
#pragma once
#include <grpcpp/server.h>

#include <memory>
#include <thread>

#include "base/mutex.h"
#include "engine/metrics.h"
#include "server/config.h"
#include "server/front/front.h"

namespace assay {

class Listeners {
 public:
  // `data` serves everything, `health` (or null) health alone; both outlive it. InvalidArgument:
  // the certificate cannot be used; Unavailable: a port cannot be bound. Both say why.
  static absl::StatusOr<std::unique_ptr<Listeners>> Start(const ServerConfig& config,
                                                          grpc::Server& data, grpc::Server* health);
  ~Listeners();  // cuts what is open

  int data_port() const { return data_->port(); }
  int health_port() const { return health_ == nullptr ? 0 : health_->port(); }
  const TlsStore* tls() const { return tls_.get(); }  // null: no TLS
  ConnectionReading Read() const;                     // of all ports
  void StopAccepting();

 private:
  Listeners() = default;
  void KeepFresh(absl::Duration interval) ABSL_LOCKS_EXCLUDED(mu_);

  std::unique_ptr<TlsStore> tls_;
  std::unique_ptr<Front> data_, health_;
  Mutex mu_;
  CondVar stopping_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread fresh_;
};

}  // namespace assay
