// Bounds of connections to a port (front.h). Plain values.
#pragma once
#include <cstddef>
#include <string>

#include "absl/time/time.h"

namespace assay {

struct Http2Limits {
  size_t max_header_bytes = size_t{64} << 10;  // of one block, its CONTINUATION frames included
  double max_resets_per_second = 200;          // on average; five seconds' worth at once
  // Opened before the client has acknowledged the server's SETTINGS, which say how many there may
  // be at once: gRPC bounds them only from then on.
  int max_early_streams = 256;
};

struct FrontLimits {
  Http2Limits http2;
  int max_connections = 1024;
  int max_connections_per_address = 256;  // 0: no bound
  // Of TLS, the first bytes of HTTP/2, and each header block that has begun.
  absl::Duration handshake_timeout = absl::Seconds(10);  // and the head of an HTTP/1 request
  // From there on, until the answer of HTTP/1 has been read and the connection is closed.
  absl::Duration http_answer_time = absl::Seconds(30);
};

struct TlsFiles {  // PEM; all empty: no TLS
  std::string certificate, key;
  std::string client_ca;  // clients must have a certificate that it signed; empty: need none
};

}  // namespace assay
