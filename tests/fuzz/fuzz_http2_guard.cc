// What a client sends, split in two ways: the guard must say the same of both, and never take a
// header block beyond its limit.
#include <algorithm>
#include <cstdlib>

#include "server/front/http2_guard.h"

namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

absl::Status Take(std::span<const std::byte> bytes, size_t piece) {
  const absl::Time now = absl::FromUnixSeconds(1);
  assay::Http2Guard guard({.max_header_bytes = 300, .max_resets_per_second = 2}, now);
  if (!guard.Take(std::as_bytes(std::span(kPreface)), now).ok()) std::abort();
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(piece, bytes.size()));
    if (absl::Status status = guard.Take(part, now); !status.ok()) return status;
    bytes = bytes.subspan(part.size());
  }
  return absl::OkStatus();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  const size_t piece = data[0] % 32 + 1;
  const std::span bytes = std::as_bytes(std::span(data, size)).subspan(1);
  if (Take(bytes, piece) != Take(bytes, size)) std::abort();
  return 0;
}
