// The server's certificate, and whose clients it trusts: read from files, looked at again and
// again, so that a certificate that is renewed needs no restart. The library (OpenSSL) is confined
// to the .cc and to connection.cc.
//
// Thread rule: any thread.
#pragma once
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "base/mutex.h"
#include "base/status.h"
#include "server/front/limits.h"

struct ssl_ctx_st;

namespace assay {

class TlsStore {
 public:
  static constexpr char kHttp2[] = "h2", kHttp1[] = "http/1.1";

  // InvalidArgument names the file and what is wrong with it: missing, unreadable, not PEM, a key
  // of another certificate.
  // Clients that ask for a protocol (ALPN) get `protocol`, or are turned away.
  static absl::StatusOr<std::unique_ptr<TlsStore>> Load(TlsFiles files,
                                                        const char* protocol = kHttp2);

  // Reads the files again. True: they are others than before and are in force for connections that
  // come from now on. An error leaves what was there in force.
  absl::StatusOr<bool> Reload() ABSL_LOCKS_EXCLUDED(mu_);

  std::shared_ptr<ssl_ctx_st> context() const ABSL_LOCKS_EXCLUDED(mu_);
  // Until when the server's certificate and its chain are valid.
  absl::Time expiry() const ABSL_LOCKS_EXCLUDED(mu_);
  // Until when all of tls.client_ca are; InfiniteFuture: there are none.
  absl::Time client_ca_expiry() const ABSL_LOCKS_EXCLUDED(mu_);
  bool asks_clients() const { return !files_.client_ca.empty(); }

 private:
  struct Loaded {
    std::shared_ptr<ssl_ctx_st> context;
    absl::Time expiry, client_ca_expiry;
    std::string hash;  // of the files
  };
  TlsStore(TlsFiles files, std::string protocol)
      : files_(std::move(files)), protocol_(std::move(protocol)) {}
  absl::StatusOr<Loaded> Read() const;

  const TlsFiles files_;
  const std::string protocol_;  // with its length in front, as ALPN has it
  mutable Mutex mu_;
  Loaded loaded_ ABSL_GUARDED_BY(mu_);
};

}  // namespace assay
