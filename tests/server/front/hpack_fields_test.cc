// Blocks by hand (RFC 7541, section 6 and appendix C), in pieces of every size.
#include "server/front/hpack_fields.h"

#include <string>
#include <string_view>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

absl::Status Send(HpackFields& fields, std::string_view bytes, size_t piece = 1 << 20) {
  for (size_t at = 0; at < bytes.size(); at += piece)
    RETURN_IF_ERROR(fields.Take(std::as_bytes(std::span(bytes.substr(at, piece)))));
  return absl::OkStatus();
}

// One more field than this is too many.
void ExpectFields(const std::string& block, size_t count) {
  for (const size_t piece : {size_t{1}, size_t{2}, size_t{7}, size_t{1} << 20}) {
    HpackFields fields;
    ASSERT_OK(Send(fields, block, piece)) << "piece=" << piece;
    ASSERT_OK(Send(fields, std::string(HpackFields::kMost - count, '\x82')));
    EXPECT_THAT(Send(fields, "\x82"),
                StatusIs(StatusCode::kResourceExhausted, HasSubstr("too many fields: most=256")))
        << "piece=" << piece;
  }
}

TEST(HpackFieldsTest, CountsEveryKindOfField) {
  ExpectFields("", 0);
  ExpectFields("\x82\x86\x84", 3);                  // indexed
  ExpectFields(std::string("\xff\x80\x01", 3), 1);  // by a large index
  ExpectFields(std::string("\x40\x0a") + "custom-key\x0d" + "custom-header", 1);  // C.2.1
  ExpectFields(std::string("\x04\x0c/sample/path"), 1);                           // C.2.2
  ExpectFields(std::string("\x10\x08password\x06secret"), 1);                     // C.2.3
  ExpectFields(std::string("\x7f\x01\x01v\x0f\x01\x01v", 8), 2);  // name of a large index
  ExpectFields(std::string("\x00\x00\x00\x00\x00\x00", 6), 2);    // without name and value
  ExpectFields("\x20\x3f\xe1\x1f", 2);                            // sizes of the table
  ExpectFields(
      std::string("\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", 17),
      4);  // C.4.1, Huffman's code
}

TEST(HpackFieldsTest, LongStringsAreOneField) {
  // 127 + 0x2d + (2 << 7) = 428 bytes, of what would be fields.
  const std::string text(428, '\x82');
  ExpectFields(std::string("\x00\x7f\xad\x02", 4) + text + "\x7f\xad\x02" + text, 1);
}

TEST(HpackFieldsTest, ABlockBeginsAnew) {
  HpackFields fields;
  ASSERT_OK(Send(fields, std::string(HpackFields::kMost, '\x82')));
  fields.Begin();
  EXPECT_OK(Send(fields, std::string(HpackFields::kMost, '\x82')));
}

TEST(HpackFieldsTest, IntegersWithoutEndAreRefused) {
  for (const std::string& begin : {std::string("\xff"), std::string("\x3f"), std::string("\x7f"),
                                   std::string("\x00\x7f", 2)}) {
    HpackFields fields;
    EXPECT_THAT(Send(fields, begin + std::string(9, '\xff')),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("not HPACK")));
  }
}

}  // namespace
}  // namespace assay
