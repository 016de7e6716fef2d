// Watches what a client sends to an HTTP/1 server that answers one request per connection: the
// server is not to see the client before the head of the request (RFC 9112, section 2.1) is whole,
// so that who dribbles it holds none of the server's threads, and head and body are bounded.
//
// Thread rule: one thread per object.
#pragma once
#include <cstddef>
#include <span>

#include "base/status.h"

namespace assay {

class Http1Guard {
 public:
  explicit Http1Guard(size_t max_bytes) : max_bytes_(max_bytes) {}

  // The next bytes that the client sent. ResourceExhausted: the request is larger than it may be.
  absl::Status Take(std::span<const std::byte> bytes);

  bool begun() const { return begun_; }  // the head is whole: the line that ends it is empty

 private:
  const size_t max_bytes_;
  size_t bytes_ = 0;
  bool text_ = false;          // empty lines in front of a request are none of it
  bool line_is_empty_ = true;  // that which is being read
  bool begun_ = false;
};

}  // namespace assay
