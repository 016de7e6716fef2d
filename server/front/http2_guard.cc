#include "server/front/http2_guard.h"

#include <algorithm>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

enum Type : uint8_t {
  kData = 0,
  kHeaders = 1,
  kPriority = 2,
  kReset = 3,
  kSettings = 4,
  kPushPromise = 5,
  kPing = 6,
  kContinuation = 9
};
constexpr uint8_t kAck = 0x1, kEndStream = 0x1, kEndHeaders = 0x4, kPadded = 0x8,
                  kPriorityFlag = 0x20;
constexpr size_t kPadBytes = 1, kPriorityBytes = 5;  // in front of the block

// Of a block, besides those that its bytes take in frames of 16 KiB, the largest that gRPC takes.
constexpr size_t kSpareFrames = 32, kFrameBytes = 16384;
// SETTINGS, PING, PRIORITY, empty DATA: clients that measure the bandwidth send some hundred pings.
constexpr double kControlsPerSecond = 1000;
// WINDOW_UPDATE, frames of types that are unknown, DATA of a few bytes: what reads a great deal
// sends two of the first for every 4 KiB, which makes 40 MB a second.
constexpr double kSmallPerSecond = 20000;
constexpr size_t kSmallData = 16;
constexpr double kBurstSeconds = 5;

}  // namespace

Http2Guard::Http2Guard(const Http2Limits& limits, absl::Time now) : limits_(limits) {
  const auto bucket = [&](double rate) {
    return Bucket{
        .rate = rate, .most = rate * kBurstSeconds, .left = rate * kBurstSeconds, .filled = now};
  };
  resets_ = bucket(limits.max_resets_per_second);
  controls_ = bucket(kControlsPerSecond);
  small_ = bucket(kSmallPerSecond);
}

bool Http2Guard::Bucket::TakeOne(absl::Time now) {
  left = std::min(most, left + rate * absl::ToDoubleSeconds(now - filled));
  filled = now;
  if (left < 1) return false;
  left -= 1;
  return true;
}

absl::Status Http2Guard::Take(std::span<const std::byte> bytes, absl::Time now) {
  while (!bytes.empty()) {
    const auto first = static_cast<uint8_t>(bytes.front());
    if (preface_seen_ < kPrefaceBytes) {
      if (first != static_cast<uint8_t>(kPreface[preface_seen_]))
        return absl::InvalidArgumentError("not HTTP/2: the connection's preface is missing");
      ++preface_seen_;
      bytes = bytes.subspan(1);
      continue;
    }
    const size_t payload = std::min(payload_left_, bytes.size());
    RETURN_IF_ERROR(TakePayload(bytes.first(payload)));
    payload_left_ -= payload;
    bytes = bytes.subspan(payload);
    if (payload_left_ > 0 || bytes.empty()) continue;
    header_[header_seen_++] = static_cast<uint8_t>(bytes.front());
    bytes = bytes.subspan(1);
    if (header_seen_ == kFrameHeader) RETURN_IF_ERROR(TakeFrame(now));
  }
  return absl::OkStatus();
}

// Only of header blocks anything is looked at: elsewhere both lengths are 0.
absl::Status Http2Guard::TakePayload(std::span<const std::byte> bytes) {
  if (pad_unread_ && !bytes.empty()) {
    const auto pad = static_cast<size_t>(bytes.front());
    if (pad > fragment_left_) return absl::InvalidArgumentError("a frame is all padding");
    fragment_left_ -= pad;
    pad_unread_ = false;
  }
  const size_t lead = std::min(lead_left_, bytes.size());
  lead_left_ -= lead;
  bytes = bytes.subspan(lead);
  const size_t part = std::min(fragment_left_, bytes.size());
  fragment_left_ -= part;
  return fields_.Take(bytes.first(part));
}

absl::Status Http2Guard::TakeFrame(absl::Time now) {
  header_seen_ = 0;
  const auto at = [&](int i) { return static_cast<uint32_t>(header_[static_cast<size_t>(i)]); };
  const size_t length = at(0) << 16 | at(1) << 8 | at(2);
  const uint8_t type = header_[3], flags = header_[4];
  const uint32_t stream = (at(5) << 24 | at(6) << 16 | at(7) << 8 | at(8)) & 0x7fffffffu;
  payload_left_ = length;
  if (in_block_ && type != kContinuation)
    return absl::InvalidArgumentError("a header block is interrupted by another frame");
  lead_left_ = fragment_left_ = 0;
  pad_unread_ = false;
  switch (type) {
    case kHeaders:
      RETURN_IF_ERROR(TakeStream(stream));
      pad_unread_ = (flags & kPadded) != 0;
      lead_left_ =
          (pad_unread_ ? kPadBytes : 0) + ((flags & kPriorityFlag) != 0 ? kPriorityBytes : 0);
      return TakeHeaders(length, stream, (flags & kEndHeaders) != 0, /*continues=*/false);
    case kContinuation:
      return TakeHeaders(length, stream, (flags & kEndHeaders) != 0, /*continues=*/true);
    case kPushPromise:
      return absl::InvalidArgumentError("a client pushes");
    case kReset:
      if (!resets_.TakeOne(now))
        return absl::ResourceExhaustedError(absl::StrCat(
            "too many streams are reset: max_resets_per_second=", limits_.max_resets_per_second));
      return absl::OkStatus();
    case kData:
      if ((flags & kEndStream) != 0 || length >= kSmallData) return absl::OkStatus();
      if (length > 0) return TakeSmall(now);
      [[fallthrough]];
    case kPriority:
    case kSettings:
    case kPing:
      if (type == kSettings && (flags & kAck) != 0 && server_spoke_) settled_ = true;
      if (!controls_.TakeOne(now))
        return absl::ResourceExhaustedError(
            absl::StrCat("too many control frames: most per second=", kControlsPerSecond));
      return absl::OkStatus();
    default:  // WINDOW_UPDATE, GOAWAY, and what later versions add
      return TakeSmall(now);
  }
}

absl::Status Http2Guard::TakeSmall(absl::Time now) {
  if (small_.TakeOne(now)) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("too many small frames: most per second=", kSmallPerSecond));
}

// A HEADERS frame: of a new stream, or the trailers of one.
absl::Status Http2Guard::TakeStream(uint32_t stream) {
  if (settled_ || stream <= newest_stream_) return absl::OkStatus();
  newest_stream_ = stream;
  if (++early_streams_ <= limits_.max_early_streams) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "too many streams before SETTINGS are acknowledged: most=", limits_.max_early_streams));
}

absl::Status Http2Guard::TakeHeaders(size_t length, uint32_t stream, bool ends, bool continues) {
  if (continues && (!in_block_ || stream != block_stream_))
    return absl::InvalidArgumentError("CONTINUATION of no header block");
  if (!continues) {
    block_bytes_ = 0;
    block_frames_ = 0;
    block_stream_ = stream;
    fields_.Begin();
  }
  if (length < lead_left_) return absl::InvalidArgumentError("a HEADERS frame is too short");
  fragment_left_ = length - lead_left_;
  block_bytes_ += length;
  in_block_ = !ends;
  if (block_bytes_ > limits_.max_header_bytes)
    return absl::ResourceExhaustedError(
        absl::StrCat("a header block is too large: max_header_bytes=", limits_.max_header_bytes));
  const size_t most = kSpareFrames + limits_.max_header_bytes / kFrameBytes;
  if (++block_frames_ > most)
    return absl::ResourceExhaustedError(
        absl::StrCat("a header block has too many frames: most=", most));
  return absl::OkStatus();
}

}  // namespace assay
