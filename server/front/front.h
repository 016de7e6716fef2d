// A port of the server: accepts clients, bounds how many and how long they may take to begin, ends
// TLS, watches their HTTP/2 frames (http2_guard.h) and gives each to gRPC as one end of a socket
// pair. So that everything that gRPC reads has been looked at (docs/adr/0014-*.md). The HTTP port
// is one, too: its clients' requests go to civetweb once their heads are whole (http1_guard.h).
//
// Thread rule: any thread; `serve` is called on threads of the Front.
#pragma once
#include <atomic>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"
#include "server/front/limits.h"
#include "server/front/peer_addresses.h"
#include "server/front/tls_store.h"

namespace assay {

struct FrontOptions {
  std::string address = "127.0.0.1";
  int port = 0;                   // 0: a free one
  const char* protocol = "gRPC";  // named in errors
  FrontLimits limits;
  const TlsStore* tls = nullptr;  // outlives the Front; null: plain
  // Of HTTP/1, one request per connection: opens the server's end for a client whose request has a
  // whole head; negative: it takes none. Null: HTTP/2, over a socket pair whose other end `serve`
  // takes over.
  std::function<int()> connect;
  // The server's ends have numbers from here on: which port a client came in by can be told from
  // its peer ("fd:N"), for good.
  int lowest_fd = 0;
  int end_fd = std::numeric_limits<int>::max();  // and are below this
  PeerAddresses* addresses = nullptr;            // told of each; outlives the Front; null: none
  // Called on a thread of the Front, twice a second; may be empty.
  std::function<void()> tick;
};

// Why connections were not let in, or were cut. Counts since the start.
struct FrontCounts {
  uint64_t accepted = 0;
  uint64_t too_many = 0;       // at once, in all or of one address
  uint64_t no_descriptor = 0;  // the process may open no more files
  uint64_t not_http2 = 0;      // no preface, or frames out of order
  uint64_t handshake = 0;      // of TLS failed
  uint64_t too_slow = 0;       // to begin, or to end a header block
  uint64_t limit = 0;          // a header block or resets beyond their limit
  uint64_t not_taken = 0;      // by the server
  int open = 0;

  FrontCounts& operator+=(const FrontCounts& more);
};

class Front {
 public:
  // `serve` takes over the server's end of a connection.
  // Unavailable: the address cannot be bound (says why).
  static absl::StatusOr<std::unique_ptr<Front>> Start(FrontOptions options,
                                                      std::function<void(int fd)> serve);
  ~Front();  // cuts what is open
  int port() const;
  FrontCounts counts() const;
  void StopAccepting();  // those that are there go on

 private:
  struct Shared;
  class Loop;
  explicit Front(std::unique_ptr<Shared> shared);
  std::unique_ptr<Shared> shared_;
  std::vector<std::unique_ptr<Loop>> loops_;
};

}  // namespace assay
