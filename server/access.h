// Who may do what. Clients show a bearer token (`authorization: Bearer TOKEN`, as gRPC metadata and
// as HTTP header); the server keeps SHA-256 of each, with a name and roles. Without a file of
// tokens nobody is asked for one, and only administration is bounded: by the port it comes by.
//
// Thread rule: any thread.
#pragma once
#include <grpcpp/grpcpp.h>

#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/mutex.h"
#include "base/status.h"
#include "engine/metrics.h"

namespace assay {

enum class Role { kInfer, kObserve, kAdmin };  // kAdmin includes the others
std::string_view Name(Role role);              // "infer", "observe", "admin"

// The file: a line per token, `name roles sha256`, roles joined by commas; `#` begins a comment.
class TokenTable {
 public:
  struct Entry {
    std::string name;
    unsigned roles = 0;  // bit 1 << Role
    std::string hash;    // 64 lower-case hexadecimal digits
    bool Has(Role role) const { return (roles & (1u << static_cast<unsigned>(role))) != 0; }
  };
  // InvalidArgument: the line and what was expected, never what stands there. No entry at all is
  // fine: then nobody is let in.
  static absl::StatusOr<TokenTable> Parse(std::string_view text, const std::string& origin);
  // `path` empty: no file. NotFound: it cannot be read; else as Parse.
  static absl::StatusOr<TokenTable> Read(const std::string& path);

  // Of the presented token; null: unknown. Takes the same time whatever is in the table and
  // whichever entry it is.
  const Entry* Find(std::string_view token) const;
  const std::vector<Entry>& entries() const { return entries_; }
  bool operator==(const TokenTable& other) const;

 private:
  std::vector<Entry> entries_;
};

struct AccessOptions {
  std::string tokens_path;     // empty: no tokens are asked for
  bool admin_on_data = false;  // administration by the data port, too
  // Peers "fd:N" with N from here on came by the admin port (server/front/front.h).
  int admin_from_fd = std::numeric_limits<int>::max();
};

class AccessControl {
 public:
  // `metrics` outlives this.
  AccessControl(AccessOptions options, TokenTable tokens, Metrics& metrics);

  // Unauthenticated: no token, or an unknown one; PermissionDenied: its role is missing (named), or
  // administration came by a port that does not serve it. No message holds any of the token.
  // Returns the name of the client's token; empty: none is asked for.
  absl::StatusOr<std::string> Check(const grpc::CallbackServerContext& rpc, Role role) const
      ABSL_LOCKS_EXCLUDED(mu_);
  // Likewise for a header of HTTP, empty: there was none. Ports are not looked at.
  absl::Status Check(const std::string& authorization, Role role) const ABSL_LOCKS_EXCLUDED(mu_);
  // Name of the client's token; empty: no tokens are asked for, or it has shown no known one. Of
  // who may go on Check has said it already.
  std::string ClientOf(const grpc::ServerContextBase& rpc) const ABSL_LOCKS_EXCLUDED(mu_);

  // Reads the file again. True: it is another than before, and in force. An error leaves what was
  // there in force.
  absl::StatusOr<bool> Reload() ABSL_LOCKS_EXCLUDED(mu_);
  bool asks_tokens() const { return !options_.tokens_path.empty(); }
  size_t num_tokens() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  std::shared_ptr<const TokenTable> tokens() const ABSL_LOCKS_EXCLUDED(mu_);
  absl::StatusOr<std::string> CheckToken(const std::string& authorization, Role role) const;
  bool CameByAdminPort(const std::string& peer) const;

  const AccessOptions options_;
  Metrics& metrics_;
  mutable Mutex mu_;
  std::shared_ptr<const TokenTable> tokens_ ABSL_GUARDED_BY(mu_);
};

}  // namespace assay
