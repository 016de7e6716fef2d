// The container safetensors; directories are in safetensors_directory_test.cc.
#include "engine/model/safetensors.h"

#include <gmock/gmock.h>

#include <cstring>

#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::HasSubstr;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

std::span<const std::byte> BytesOf(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string File(const std::string& header, size_t data_bytes) {
  std::string file(8, '\0');
  const uint64_t size = header.size();
  std::memcpy(file.data(), &size, sizeof size);
  return file + header + std::string(data_bytes, '\1');
}

absl::Status Parse(const std::string& header, size_t data_bytes) {
  return ParseSafetensors(BytesOf(File(header, data_bytes))).status();
}

// One entry of the header.
std::string Entry(const std::string& name, const std::string& shape, const std::string& offsets,
                  const std::string& dtype = "F32") {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" +
         offsets + "}";
}

const char kSmall[] =
    R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}})";

TEST(SafetensorsTest, ReadsEveryDtypeThatHasAnF32Value) {
  const std::string bytes = ReadGolden("checkpoint/types.safetensors.xz"),
                    golden = ReadGolden("checkpoint/types.f32.xz");
  ASSERT_OK_AND_ASSIGN(const std::vector<StoredTensor> tensors, ParseSafetensors(BytesOf(bytes)));
  EXPECT_EQ(tensors.size(), 8u);
  size_t at = 0;
  for (const std::string name : {"f32", "f16", "bf16"}) {
    const auto tensor =
        std::ranges::find(tensors, name, [](const StoredTensor& t) { return t.info.name; });
    ASSERT_NE(tensor, tensors.end()) << name;
    std::vector<float> values(static_cast<size_t>(tensor->info.shape.elements()));
    ASSERT_OK(DecodeRows(*tensor, BytesOf(bytes), 0, tensor->info.shape[0], values));
    EXPECT_EQ(std::memcmp(values.data(), golden.data() + at, values.size() * 4), 0) << name;
    at += values.size() * 4;
  }
  EXPECT_EQ(at, golden.size());
}

TEST(SafetensorsTest, ReadsScalarsAndEmptyTensors) {
  const std::string bytes = ReadGolden("checkpoint/types.safetensors.xz");
  ASSERT_OK_AND_ASSIGN(const std::vector<StoredTensor> tensors, ParseSafetensors(BytesOf(bytes)));
  const auto find = [&](std::string_view name) {
    return *std::ranges::find(tensors, name, [](const StoredTensor& t) { return t.info.name; });
  };
  float value = 0;
  ASSERT_OK(DecodeRows(find("scalar"), BytesOf(bytes), 0, 1, std::span(&value, 1)));
  EXPECT_EQ(value, 2.5f);
  EXPECT_OK(DecodeRows(find("empty"), BytesOf(bytes), 0, 0, {}));
}

TEST(SafetensorsTest, ListsOtherDtypesButDoesNotReadThem) {
  const std::string bytes = ReadGolden("checkpoint/types.safetensors.xz");
  ASSERT_OK_AND_ASSIGN(const std::vector<StoredTensor> tensors, ParseSafetensors(BytesOf(bytes)));
  for (const std::string name : {"i64", "f8_e4m3", "bool"}) {
    const auto tensor =
        std::ranges::find(tensors, name, [](const StoredTensor& t) { return t.info.name; });
    std::vector<float> values(static_cast<size_t>(tensor->info.shape.elements()));
    EXPECT_THAT(DecodeRows(*tensor, BytesOf(bytes), 0, tensor->info.shape[0], values),
                StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("encoding=" + name)));
  }
}

TEST(SafetensorsTest, FailsWhereverItIsTruncated) {
  const std::string bytes = File(kSmall, 12);
  ASSERT_OK(ParseSafetensors(BytesOf(bytes)));
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<int64_t>(size));
    EXPECT_THAT(ParseSafetensors(std::as_bytes(std::span(cut))), StatusIs(kDataLoss))
        << "at " << size;
  }
}

TEST(SafetensorsTest, FailsWhereverItsHeaderIsTruncated) {  // with a length that says so
  const std::string header = kSmall;
  for (size_t size = 0; size < header.size(); ++size) {
    EXPECT_THAT(Parse(header.substr(0, size), 12), StatusIs(kDataLoss)) << "at " << size;
  }
}

TEST(SafetensorsTest, RefusesAHugeHeaderBeforeReadingIt) {
  for (const uint64_t size : {uint64_t{100'000'001}, uint64_t{1} << 60, UINT64_MAX}) {
    std::string file(8, '\0');
    std::memcpy(file.data(), &size, sizeof size);
    EXPECT_THAT(ParseSafetensors(BytesOf(file)), StatusIs(kInvalid, HasSubstr("limit=100000000")))
        << size;
  }
}

TEST(SafetensorsTest, RefusesOffsetsThatContradictTheShape) {
  for (const std::string offsets : {"[0,7]", "[8,0]", "[0]", "[]", "[0,8,16]",
                                    "[0,18446744073709551615]", "[18446744073709551608,0]"}) {
    EXPECT_THAT(Parse("{" + Entry("w", "[2]", offsets) + "}", 8),
                StatusIs(kDataLoss, HasSubstr("'w'")))
        << offsets;
  }
  EXPECT_THAT(Parse("{" + Entry("w", "[2]", "[8,16]") + "}", 8),
              StatusIs(kDataLoss, AllOf(HasSubstr("'w'"), HasSubstr("outside"))));
  EXPECT_THAT(
      Parse("{" + Entry("w", "[2]", "[18446744073709551600,18446744073709551608]") + "}", 8),
      StatusIs(kDataLoss, HasSubstr("'w'")));
}

TEST(SafetensorsTest, RefusesOverlapsAndGaps) {
  EXPECT_THAT(
      Parse("{" + Entry("a", "[2]", "[0,8]") + "," + Entry("b", "[2]", "[4,12]") + "}", 12),
      StatusIs(kDataLoss, AllOf(HasSubstr("'b'"), HasSubstr("overlaps"), HasSubstr("'a'"))));
  EXPECT_THAT(
      Parse("{" + Entry("a", "[2]", "[0,8]") + "," + Entry("b", "[2]", "[12,20]") + "}", 20),
      StatusIs(kDataLoss, HasSubstr("no tensor")));
  EXPECT_THAT(Parse("{" + Entry("a", "[2]", "[0,8]") + "}", 9),
              StatusIs(kDataLoss, HasSubstr("data bytes=9")));
}

TEST(SafetensorsTest, RefusesAbsurdShapes) {
  for (const std::string shape : {"[1152921504606846976]", "[4294967296,4294967296]",
                                  "[0,1099511627776,1099511627776]", "[1,1,1,1,1]"}) {
    EXPECT_THAT(Parse("{" + Entry("w", shape, "[0,8]") + "}", 8),
                StatusIs(kInvalid, HasSubstr("'w'")))
        << shape;
  }
  EXPECT_THAT(Parse("{" + Entry("w", "[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "[0,8]") + "}", 8),
              StatusIs(kInvalid, HasSubstr("long list")));
  EXPECT_THAT(Parse("{" + Entry("w", "[-2]", "[0,8]") + "}", 8),
              StatusIs(kDataLoss, HasSubstr("value=-2")));
  EXPECT_THAT(Parse("{" + Entry("w", "[2.0]", "[0,8]") + "}", 8),
              StatusIs(kDataLoss, HasSubstr("'w'")));
  EXPECT_THAT(Parse("{" + Entry("w", "[99999999999999999999]", "[0,8]") + "}", 8),
              StatusIs(kDataLoss, HasSubstr("'w'")));
}

TEST(SafetensorsTest, RefusesDuplicates) {
  EXPECT_THAT(Parse("{" + Entry("w", "[2]", "[0,8]") + "," + Entry("w", "[2]", "[8,16]") + "}", 16),
              StatusIs(kInvalid, AllOf(HasSubstr("'w'"), HasSubstr("twice"))));
  EXPECT_THAT(Parse(R"({"w":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}})", 8),
              StatusIs(kInvalid, HasSubstr("key=dtype")));
}

TEST(SafetensorsTest, RefusesNamesThatAreNotUtf8) {
  EXPECT_THAT(Parse("{" + Entry("caf\xe9", "[2]", "[0,8]") + "}", 8),
              StatusIs(kInvalid, AllOf(HasSubstr("'caf\\xe9'"), HasSubstr("UTF-8"))));
}

TEST(SafetensorsTest, RefusesUnknownDtypes) {
  EXPECT_THAT(Parse("{" + Entry("w", "[2]", "[0,8]", "F31") + "}", 8),
              StatusIs(kInvalid, AllOf(HasSubstr("'w'"), HasSubstr("'F31'"))));
}

TEST(SafetensorsTest, RefusesJsonOfAnotherShape) {
  for (const std::string header : {"[]",
                                   "null",
                                   "1",
                                   "\"text\"",
                                   R"({"w":1})",
                                   R"({"w":[]})",
                                   R"({"w":null})",
                                   R"({"w":{}})",
                                   R"({"w":{"dtype":"F32"}})",
                                   R"({"w":{"dtype":1}})",
                                   R"({"w":{"dtype":[]}})",
                                   R"({"w":{"shape":{}}})",
                                   R"({"w":{"shape":[[2]]}})",
                                   R"({"w":{"other":1}})",
                                   R"({"w":{"shape":[true]}})",
                                   R"({"__metadata__":[]})",
                                   R"({"__metadata__":{"k":1}})",
                                   R"({"__metadata__":{"k":{}}})",
                                   "{} {}",
                                   "",
                                   "{"}) {
    EXPECT_THAT(Parse(header, 0), StatusIs(kDataLoss)) << header;
  }
}

TEST(SafetensorsTest, DeepNestingIsRefusedWithoutRecursion) {
  std::string deep = R"({"w":{"shape":)";
  deep.append(5'000'000, '[');
  EXPECT_THAT(Parse(deep, 0), StatusIs(kDataLoss, AllOf(HasSubstr("'w'"), HasSubstr("an array"))));
}

TEST(SafetensorsTest, AcceptsAnEmptyHeaderWithPadding) { EXPECT_OK(Parse("{}      ", 0)); }

}  // namespace
}  // namespace assay
