#include "server/front/http1_guard.h"

#include "absl/strings/str_cat.h"

namespace assay {

absl::Status Http1Guard::Take(std::span<const std::byte> bytes) {
  bytes_ += bytes.size();
  if (bytes_ > max_bytes_)
    return absl::ResourceExhaustedError(
        absl::StrCat("an HTTP request is too large: max_header_bytes=", max_bytes_));
  for (const std::byte byte : bytes) {
    if (begun_) break;
    const char c = static_cast<char>(byte);
    if (c == '\n') {
      begun_ = text_ && line_is_empty_;
      line_is_empty_ = true;
    } else if (c != '\r') {
      text_ = true;
      line_is_empty_ = false;
    }
  }
  return absl::OkStatus();
}

}  // namespace assay
