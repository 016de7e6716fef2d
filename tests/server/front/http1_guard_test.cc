// Requests as clients send them, in pieces of every size.
#include "server/front/http1_guard.h"

#include <string>
#include <string_view>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

absl::Status Send(Http1Guard& guard, std::string_view bytes) {
  return guard.Take(std::as_bytes(std::span(bytes)));
}

TEST(Http1GuardTest, BeginsWithTheEmptyLineAfterTheHead) {
  for (const std::string head :
       {"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "GET /\n\n", "\r\n\r\n\nGET / HTTP/1.1\r\n\r\n"}) {
    Http1Guard guard(1000);
    for (size_t i = 0; i < head.size(); ++i) {
      EXPECT_FALSE(guard.begun()) << "at " << i << " of " << head;
      ASSERT_OK(Send(guard, std::string_view(head).substr(i, 1)));
    }
    EXPECT_TRUE(guard.begun()) << head;
  }
}

TEST(Http1GuardTest, AHeadThatNeverEndsIsBounded) {
  Http1Guard guard(1000);
  ASSERT_OK(Send(guard, "GET /" + std::string(995, 'a')));
  EXPECT_FALSE(guard.begun());
  EXPECT_THAT(Send(guard, "a"),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("max_header_bytes=1000")));
}

TEST(Http1GuardTest, AndSoIsTheBody) {
  Http1Guard guard(1000);
  const std::string head = "POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n";
  ASSERT_OK(Send(guard, head));
  EXPECT_TRUE(guard.begun());
  ASSERT_OK(Send(guard, std::string(1000 - head.size(), 'b')));
  EXPECT_THAT(Send(guard, "b"), StatusIs(StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace assay
