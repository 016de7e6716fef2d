// The whole server as an object: built bottom-up, taken down in reverse order.
//
//   Start()  binds both ports at once, then admits the models of the repository
//   Drain()  refuses new requests, lets accepted ones finish (at most drain_timeout)
//
// Thread rule: Start, WaitForStartup, Drain from one thread (main's).
#pragma once
#include <memory>
#include <string>

#include "server/config.h"

namespace assay {

struct AdmissionHooks;  // engine/lifecycle/admission_stages.h

class Server {
 public:
  // Unavailable: a port cannot be bound; NotFound, InvalidArgument: repository, policy.
  // Whether the files that the configuration names can be used: policy, evaluation text, model
  // repository. The error is one for whoever wrote the configuration.
  static absl::Status CheckFiles(const ServerConfig& config);
  // `hooks` is for tests of a server whose models go bad.
  static absl::StatusOr<std::unique_ptr<Server>> Start(ServerConfig config,
                                                       const AdmissionHooks* hooks = nullptr);
  ~Server();  // drains, if that has not been done

  int grpc_port() const;
  int http_port() const;
  // True when every model found at start has had its verdict; false when `until` passed first.
  bool WaitForStartup(absl::Time until);
  void PrintReady() const;  // the last part of the banner
  // True when every accepted request has ended by itself within the drain timeout.
  bool Drain();

 private:
  struct Parts;
  explicit Server(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace assay
