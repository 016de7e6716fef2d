// Frames as a client sends them, by hand (RFC 9113, section 4.1), in pieces of every size.
#include "server/front/http2_guard.h"

#include <string>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

const std::string kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
constexpr uint8_t kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPush = 5, kPing = 6,
                  kWindowUpdate = 8, kContinuation = 9;
constexpr uint8_t kEndStream = 1, kEndHeaders = 4;

std::string Frame(uint8_t type, uint8_t flags, uint32_t stream, const std::string& payload) {
  const size_t n = payload.size();
  std::string frame;
  for (const size_t byte : {n >> 16, n >> 8, n, size_t{type}, size_t{flags}, size_t{stream >> 24},
                            size_t{stream >> 16}, size_t{stream >> 8}, size_t{stream}})
    frame += static_cast<char>(byte & 0xff);
  return frame + payload;
}

class Http2GuardTest : public testing::Test {
 protected:
  absl::Status Send(const std::string& bytes, size_t piece = 1 << 20) {
    for (size_t at = 0; at < bytes.size(); at += piece) {
      const std::string_view part = std::string_view(bytes).substr(at, piece);
      RETURN_IF_ERROR(guard_.Take(std::as_bytes(std::span(part)), now_));
    }
    return absl::OkStatus();
  }
  absl::Time now_ = absl::FromUnixSeconds(1000);
  Http2Guard guard_{{.max_header_bytes = 1000, .max_resets_per_second = 10}, now_};
};

TEST_F(Http2GuardTest, TakesWhatClientsSend) {
  const std::string talk =
      kPreface + Frame(kSettings, 0, 0, std::string(18, 'x')) + Frame(kWindowUpdate, 0, 0, "abcd") +
      Frame(kHeaders, kEndHeaders, 1, std::string(300, 'h')) +
      Frame(kData, 0, 1, std::string(16384, 'd')) + Frame(kData, kEndStream, 1, "") +
      Frame(kHeaders, 0, 3, std::string(400, 'h')) +
      Frame(kContinuation, kEndHeaders, 3, std::string(600, 'h')) + Frame(kPing, 1, 0, "12345678");
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{7}, size_t{4096}, talk.size()}) {
    Http2Guard guard({.max_header_bytes = 1000}, now_);
    for (size_t at = 0; at < talk.size(); at += piece)
      ASSERT_OK(
          guard.Take(std::as_bytes(std::span(std::string_view(talk).substr(at, piece))), now_))
          << "piece=" << piece << " at=" << at;
    EXPECT_TRUE(guard.begun());
    EXPECT_FALSE(guard.inside_headers());
  }
}

TEST_F(Http2GuardTest, StreamsAreBoundedUntilSettingsAreAcknowledged) {
  const auto open = [](uint32_t stream) { return Frame(kHeaders, kEndHeaders, stream, "h"); };
  const std::string ack = Frame(kSettings, 1, 0, "");
  const auto guard = [&](const std::string& sent, bool server_spoke) {
    Http2Guard fresh({.max_early_streams = 3}, now_);
    if (server_spoke) fresh.ServerSpoke();
    return fresh.Take(std::as_bytes(std::span(std::string_view(kPreface + sent))), now_);
  };
  const std::string three = open(1) + open(3) + open(5);
  EXPECT_OK(guard(three, true));
  EXPECT_OK(guard(three + open(5) + open(1), true));  // trailers
  EXPECT_THAT(guard(three + open(7), true),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("SETTINGS")));
  EXPECT_OK(guard(three + ack + open(7) + open(9), true));
  EXPECT_OK(guard(ack + three + open(7) + open(9), true));
  // Nothing was there to acknowledge: gRPC takes such an ACK for one of no bound at all.
  EXPECT_THAT(guard(ack + three + open(7), false), StatusIs(StatusCode::kResourceExhausted));
  EXPECT_THAT(guard(Frame(kSettings, 0, 0, "") + three + open(7), true),
              StatusIs(StatusCode::kResourceExhausted));
}

TEST_F(Http2GuardTest, WhatIsNotHttp2IsRefusedAtItsFirstWrongByte) {
  EXPECT_THAT(Send("G"), StatusIs(StatusCode::kInvalidArgument, HasSubstr("not HTTP/2")));
  Http2Guard other({}, now_);
  EXPECT_THAT(other.Take(std::as_bytes(std::span(std::string_view("PRI * HTTP/1"))), now_),
              StatusIs(StatusCode::kInvalidArgument));
  EXPECT_FALSE(other.begun());
}

TEST_F(Http2GuardTest, AHeaderBlockIsBoundedByItsFrameHeadersAlone) {
  ASSERT_OK(Send(kPreface));
  // One frame that says it is too long: refused before a byte of it comes.
  EXPECT_THAT(Send(Frame(kHeaders, kEndHeaders, 1, std::string(1001, 'h')).substr(0, 9)),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("max_header_bytes=1000")));
}

// Two bytes a field, of which one kind costs gRPC a thousand times as much.
TEST_F(Http2GuardTest, FieldsOfABlockAreCountedInAllItsFrames) {
  const std::string fields(200, '\x82');
  ASSERT_OK(Send(kPreface + Frame(kHeaders, 0, 1, fields) +
                 Frame(kContinuation, kEndHeaders, 1, fields.substr(0, 56))));
  ASSERT_OK(Send(Frame(kHeaders, 0, 3, fields) + Frame(kData, 0, 3, "").substr(0, 0)));
  EXPECT_THAT(Send(Frame(kContinuation, kEndHeaders, 3, fields.substr(0, 57)), 1),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("too many fields")));
}

TEST_F(Http2GuardTest, PaddingAndPriorityAreNoFields) {
  constexpr uint8_t kPadded = 8, kPriority = 0x20;
  const std::string fields(250, '\x82');
  const std::string padded = std::string("\x64") + fields + std::string(100, '\x82'),
                    with_priority = std::string(5, '\x82') + fields,
                    with_both = std::string("\x64") + std::string(5, '\x82') + fields +
                                std::string(100, '\x82');
  ASSERT_OK(Send(kPreface + Frame(kHeaders, kEndHeaders | kPadded, 1, padded) +
                     Frame(kHeaders, kEndHeaders | kPriority, 3, with_priority) +
                     Frame(kHeaders, kEndHeaders | kPadded | kPriority, 5, with_both),
                 1));
  EXPECT_THAT(Send(Frame(kHeaders, kEndHeaders | kPadded, 7,
                         "\x05"
                         "abcd")),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("padding")));
  Http2Guard other({}, now_);
  EXPECT_THAT(
      other.Take(std::as_bytes(std::span(std::string_view(std::string_view(kPreface)))), now_),
      IsOk());
  const std::string shorter = Frame(kHeaders, kEndHeaders | kPriority, 1, "abcd");
  EXPECT_THAT(other.Take(std::as_bytes(std::span(std::string_view(shorter))), now_),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("too short")));
}

TEST_F(Http2GuardTest, AndInAllItsFrames) {
  ASSERT_OK(Send(kPreface + Frame(kHeaders, 0, 1, std::string(400, 'h')) +
                 Frame(kContinuation, 0, 1, std::string(600, 'h'))));
  EXPECT_TRUE(guard_.inside_headers());
  EXPECT_THAT(Send(Frame(kContinuation, 0, 1, "x")), StatusIs(StatusCode::kResourceExhausted));
}

TEST_F(Http2GuardTest, EmptyContinuationsHaveAnEndToo) {
  ASSERT_OK(Send(kPreface + Frame(kHeaders, 0, 1, "h")));
  absl::Status status;
  int sent = 0;
  for (; status.ok() && sent < 1000; ++sent) status = Send(Frame(kContinuation, 0, 1, ""));
  EXPECT_THAT(status, StatusIs(StatusCode::kResourceExhausted, HasSubstr("too many frames")));
  EXPECT_EQ(sent, 32);
}

TEST_F(Http2GuardTest, EachBlockBeginsAnew) {
  ASSERT_OK(Send(kPreface));
  for (uint32_t stream = 1; stream < 100; stream += 2)
    ASSERT_OK(Send(Frame(kHeaders, kEndHeaders, stream, std::string(900, 'h'))));
}

TEST_F(Http2GuardTest, FramesOutOfOrder) {
  for (const std::string& frames :
       {Frame(kContinuation, kEndHeaders, 1, "h"),
        Frame(kHeaders, 0, 1, "h") + Frame(kData, 0, 1, "d"),
        Frame(kHeaders, 0, 1, "h") + Frame(kHeaders, kEndHeaders, 3, "h"),
        Frame(kHeaders, 0, 1, "h") + Frame(kContinuation, kEndHeaders, 3, "h"),
        Frame(kHeaders, kEndHeaders, 1, "h") + Frame(kContinuation, kEndHeaders, 1, "h"),
        Frame(kPush, kEndHeaders, 1, "h")}) {
    Http2Guard guard({}, now_);
    const std::string talk = kPreface + frames;
    EXPECT_THAT(guard.Take(std::as_bytes(std::span(talk)), now_),
                StatusIs(StatusCode::kInvalidArgument));
  }
}

// 10 a second: 50 at once, then one each tenth of a second; what is not used is not saved.
TEST_F(Http2GuardTest, ResetsHaveARate) {
  ASSERT_OK(Send(kPreface));
  const std::string reset = Frame(kReset, 0, 1, "code");
  now_ += absl::Hours(1);
  for (int i = 0; i < 50; ++i) ASSERT_OK(Send(reset)) << i;
  now_ += absl::Milliseconds(110);
  ASSERT_OK(Send(reset));
  EXPECT_THAT(Send(reset), StatusIs(StatusCode::kResourceExhausted, HasSubstr("are reset")));
}

TEST_F(Http2GuardTest, SoHaveOtherControlFrames) {
  for (const std::string& frame :
       {Frame(kPing, 0, 0, "12345678"), Frame(kSettings, 0, 0, ""), Frame(kData, 0, 1, "")}) {
    Http2Guard guard({}, now_);
    ASSERT_OK(guard.Take(std::as_bytes(std::span(kPreface)), now_));
    absl::Status status;
    int sent = 0;
    for (; status.ok() && sent < 100'000; ++sent)
      status = guard.Take(std::as_bytes(std::span(frame)), now_);
    EXPECT_THAT(status, StatusIs(StatusCode::kResourceExhausted, HasSubstr("control frames")));
    EXPECT_EQ(sent, 5001);
  }
  // Those that carry something are none of these.
  Http2Guard guard({}, now_);
  ASSERT_OK(guard.Take(std::as_bytes(std::span(kPreface)), now_));
  const std::string data = Frame(kData, 0, 1, "x") + Frame(kWindowUpdate, 0, 1, "abcd");
  for (int i = 0; i < 20'000; ++i) ASSERT_OK(guard.Take(std::as_bytes(std::span(data)), now_));
}

// 20,000 a second: five seconds' worth at once. DATA of 16 bytes and more is not counted at all.
TEST_F(Http2GuardTest, SoHaveSmallFrames) {
  constexpr uint8_t kUnknown = 0x42;
  const auto sent_until_refused = [this](const std::string& frame) {
    Http2Guard guard({}, now_);
    EXPECT_OK(guard.Take(std::as_bytes(std::span(kPreface)), now_));
    for (int sent = 1; sent < 200'000; ++sent) {
      const absl::Status status = guard.Take(std::as_bytes(std::span(frame)), now_);
      if (status.ok()) continue;
      EXPECT_THAT(status, StatusIs(StatusCode::kResourceExhausted, HasSubstr("small frames")));
      return sent;
    }
    return 0;
  };
  EXPECT_EQ(sent_until_refused(Frame(kWindowUpdate, 0, 1, "abcd")), 100'001);
  EXPECT_EQ(sent_until_refused(Frame(kUnknown, 0, 0, std::string(100, 'x'))), 100'001);
  EXPECT_EQ(sent_until_refused(Frame(kData, 0, 1, std::string(15, 'x'))), 100'001);
  EXPECT_EQ(sent_until_refused(Frame(kData, 0, 1, std::string(16, 'x'))), 0);
}

}  // namespace
}  // namespace assay
