// Watches what a client sends to an HTTP/2 server and stops what would cost the server more than
// it is worth (RFC 9113): header blocks without end, which gRPC 1.51 collects and parses again and
// again (CVE-2023-33953), blocks of a great many fields (hpack_fields.h), floods of resets
// (CVE-2023-44487), of other control frames and of small ones, streams without number of a client
// that never acknowledges SETTINGS. It reads the 9 bytes in front of each frame and the lengths in
// header blocks, changes nothing and keeps nothing.
//
// Thread rule: one thread per object.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/time/time.h"
#include "base/status.h"
#include "server/front/hpack_fields.h"
#include "server/front/limits.h"

namespace assay {

class Http2Guard {
 public:
  Http2Guard(const Http2Limits& limits, absl::Time now);

  // The next bytes that the client sent. InvalidArgument: not HTTP/2, or frames out of order;
  // ResourceExhausted: beyond a limit, which is named. Then the connection is to be closed, and
  // these bytes are not to be passed on.
  absl::Status Take(std::span<const std::byte> bytes, absl::Time now);

  // The server has sent something, and so its SETTINGS: who acknowledges them earlier does not.
  void ServerSpoke() { server_spoke_ = true; }

  bool begun() const {
    return preface_seen_ == kPrefaceBytes;
  }                                                  // the connection's preface was read
  bool inside_headers() const { return in_block_; }  // a block has not ended

 private:
  static constexpr size_t kPrefaceBytes = 24, kFrameHeader = 9;
  // So many may come, `rate` a second on average.
  struct Bucket {
    double rate = 0, most = 0, left = 0;
    absl::Time filled;
    bool TakeOne(absl::Time now);
  };
  absl::Status TakeFrame(absl::Time now);
  absl::Status TakeSmall(absl::Time now);
  absl::Status TakeStream(uint32_t stream);
  absl::Status TakePayload(std::span<const std::byte> bytes);
  absl::Status TakeHeaders(size_t length, uint32_t stream, bool ends, bool continues);

  const Http2Limits limits_;
  size_t preface_seen_ = 0;
  std::array<uint8_t, kFrameHeader> header_{};
  size_t header_seen_ = 0;
  size_t payload_left_ = 0;
  bool in_block_ = false;
  uint32_t block_stream_ = 0;
  size_t block_bytes_ = 0;
  size_t block_frames_ = 0;
  HpackFields fields_;
  // Of a frame with a part of a block: what comes before that part, and how much of it is left.
  size_t lead_left_ = 0, fragment_left_ = 0;
  bool pad_unread_ = false;  // the first byte of the lead says how much follows the part
  Bucket resets_, controls_, small_;
  bool server_spoke_ = false, settled_ = false;  // settled: SETTINGS are acknowledged
  uint32_t newest_stream_ = 0;
  int early_streams_ = 0;
};

}  // namespace assay
