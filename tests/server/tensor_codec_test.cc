#include "server/tensor_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

struct Given {
  std::string datatype;
  std::vector<int64_t> shape;
  std::string raw;
};

inference::ModelInferRequest RequestWith(const Given& given, bool raw = true) {
  inference::ModelInferRequest request;
  request.set_model_name("m");
  auto& input = *request.add_inputs();
  input.set_name("x");
  input.set_datatype(given.datatype);
  for (const int64_t dim : given.shape) input.add_shape(dim);
  if (raw) request.add_raw_input_contents(given.raw);
  return request;
}

template <typename T>
std::string Raw(std::initializer_list<T> values) {
  return {reinterpret_cast<const char*>(std::data(values)), values.size() * sizeof(T)};
}

TEST(TensorCodecTest, ReadsRawIntegersOfEveryWidth) {
  const struct {
    Given given;
    std::vector<int64_t> want;
  } cases[] = {
      {{"INT8", {2}, Raw<int8_t>({-1, 7})}, {-1, 7}},
      {{"UINT8", {2}, Raw<uint8_t>({255, 7})}, {255, 7}},
      {{"INT16", {1, 2}, Raw<int16_t>({-300, 7})}, {-300, 7}},
      {{"UINT16", {2}, Raw<uint16_t>({65535, 7})}, {65535, 7}},
      {{"INT32", {2}, Raw<int32_t>({-70000, 7})}, {-70000, 7}},
      {{"UINT32", {2}, Raw<uint32_t>({4294967295u, 7})}, {4294967295, 7}},
      {{"INT64", {2, 1}, Raw<int64_t>({-5, 7})}, {-5, 7}},
      {{"UINT64", {1}, Raw<uint64_t>({7})}, {7}},
      {{"BOOL", {2}, Raw<uint8_t>({1, 0})}, {1, 0}},
  };
  for (const auto& c : cases) {
    const auto request = RequestWith(c.given);
    ASSERT_OK_AND_ASSIGN(const auto views, CheckInputs(request));
    EXPECT_THAT(ReadIntegers(views[0]), IsOkAndHolds(c.want)) << c.given.datatype;
  }
}

TEST(TensorCodecTest, ReadsHalfPrecisionFloats) {
  const auto f16 = RequestWith({"FP16", {2}, Raw<uint16_t>({0x3c00, 0xc000})});
  ASSERT_OK_AND_ASSIGN(const auto f16_views, CheckInputs(f16));
  EXPECT_THAT(ReadFloats(f16_views[0]), IsOkAndHolds(ElementsAre(1.0f, -2.0f)));
  const auto bf16 = RequestWith({"BF16", {2}, Raw<uint16_t>({0x3f80, 0xc000})});
  ASSERT_OK_AND_ASSIGN(const auto bf16_views, CheckInputs(bf16));
  EXPECT_THAT(ReadFloats(bf16_views[0]), IsOkAndHolds(ElementsAre(1.0f, -2.0f)));
}

TEST(TensorCodecTest, ReadsTypedContents) {
  auto request = RequestWith({"INT64", {2}, ""}, /*raw=*/false);
  request.mutable_inputs(0)->mutable_contents()->add_int64_contents(3);
  request.mutable_inputs(0)->mutable_contents()->add_int64_contents(-4);
  ASSERT_OK_AND_ASSIGN(const auto views, CheckInputs(request));
  EXPECT_THAT(ReadIntegers(views[0]), IsOkAndHolds(ElementsAre(3, -4)));

  auto text = RequestWith({"BYTES", {1}, ""}, /*raw=*/false);
  text.mutable_inputs(0)->mutable_contents()->add_bytes_contents("hello");
  ASSERT_OK_AND_ASSIGN(const auto text_views, CheckInputs(text));
  EXPECT_THAT(ReadBytes(text_views[0]), IsOkAndHolds(ElementsAre("hello")));
}

TEST(TensorCodecTest, BytesComeBackAsTheyWentOut) {
  const std::vector<std::string> values{"", "a", std::string("\0b", 2), std::string(300, 'x')};
  inference::ModelInferResponse response;
  const std::vector<int64_t> shape{4, 1};
  AddBytesOutput("x", shape, values, response);
  const auto request = RequestWith({"BYTES", shape, response.raw_output_contents(0)});
  ASSERT_OK_AND_ASSIGN(const auto views, CheckInputs(request));
  EXPECT_THAT(ReadBytes(views[0]), IsOkAndHolds(testing::ElementsAreArray(values)));
}

TEST(TensorCodecTest, AnEmptyTensorHasNoValues) {
  const auto request = RequestWith({"BYTES", {0}, ""});
  ASSERT_OK_AND_ASSIGN(const auto views, CheckInputs(request));
  EXPECT_THAT(ReadBytes(views[0]), IsOkAndHolds(IsEmpty()));
}

TEST(TensorCodecTest, HostileShapesAreRefused) {
  const auto expect = [](std::vector<int64_t> shape, const char* message) {
    EXPECT_THAT(CheckInputs(RequestWith({"INT64", std::move(shape), Raw<int64_t>({1})})),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect({-1}, "input 'x': shape [-1] has a negative dimension");
  expect({std::numeric_limits<int64_t>::min(), 2}, "negative dimension");
  expect({int64_t{1} << 62, 8}, "has too many elements");  // would overflow to 0
  expect({int64_t{1} << 32, int64_t{1} << 32}, "has too many elements");
  expect({int64_t{1} << 61}, "has too many elements");  // times 8 bytes would overflow
  expect({2}, "raw contents have 8 bytes, INT64 of shape [2] needs 16");
  expect({0}, "raw contents have 8 bytes, INT64 of shape [0] needs 0");
}

TEST(TensorCodecTest, HostileBytesAreRefused) {
  const auto expect = [](const std::string& raw, int64_t elements, const char* message) {
    const auto request = RequestWith({"BYTES", {elements}, raw});
    ASSERT_OK_AND_ASSIGN(const auto views, CheckInputs(request));
    EXPECT_THAT(ReadBytes(views[0]),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect(Raw<uint32_t>({0xffffffffu}) + "abc", 1, "has length 4294967295, 3 bytes are left");
  expect("abc", 1, "end inside a length, at byte 0 of 3");
  expect(Raw<uint32_t>({1}) + "a", 2, "have 1 elements, shape [2] needs 2");
  expect(Raw<uint32_t>({0, 0, 0}), 1, "have more elements than shape [1] needs, 1");
  expect("", 1, "have 0 elements");
  // Millions of empty elements are not read to their broken end.
  expect(std::string(size_t{4} << 20, '\0') + "abc", 1,
         "have more elements than shape [1] needs, 1");
}

TEST(TensorCodecTest, MissingAndDoubledDataAreRefusedInTritonsWords) {
  auto both = RequestWith({"INT64", {1}, Raw<int64_t>({1})});
  both.mutable_inputs(0)->mutable_contents()->add_int64_contents(1);
  EXPECT_THAT(CheckInputs(both),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("contents field must not be specified when using "
                                 "raw_input_contents for 'x' for model 'm'")));
  auto missing = RequestWith({"INT64", {1}, Raw<int64_t>({1})});
  auto& second = *missing.add_inputs();
  second.set_name("y");
  second.set_datatype("INT64");
  second.add_shape(1);
  EXPECT_THAT(CheckInputs(missing),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("unable to find data for input tensor 'y' for model 'm'")));
  auto extra = RequestWith({"INT64", {1}, Raw<int64_t>({1})});
  extra.add_raw_input_contents("more");
  EXPECT_THAT(CheckInputs(extra), StatusIs(absl::StatusCode::kInvalidArgument,
                                           HasSubstr("has 2 entries for 1 inputs")));
  auto twice = RequestWith({"INT64", {1}, Raw<int64_t>({1})});
  *twice.add_inputs() = twice.inputs(0);
  EXPECT_THAT(CheckInputs(twice),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("input 'x': given twice")));
}

TEST(TensorCodecTest, WrongDatatypesAreRefused) {
  EXPECT_THAT(CheckInputs(RequestWith({"INT7", {1}, "a"})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("unknown datatype 'INT7'")));
  EXPECT_THAT(CheckInputs(RequestWith({"FP16", {1}, ""}, /*raw=*/false)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("has no typed contents")));
  const auto floats = RequestWith({"FP32", {1}, Raw<float>({1})});
  ASSERT_OK_AND_ASSIGN(const auto views, CheckInputs(floats));
  EXPECT_THAT(ReadIntegers(views[0]), StatusIs(absl::StatusCode::kInvalidArgument,
                                               HasSubstr("expected an integer datatype")));
  EXPECT_THAT(ReadBytes(views[0]),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected datatype BYTES")));
  const auto huge = RequestWith({"UINT64", {1}, Raw<uint64_t>({~uint64_t{0}})});
  ASSERT_OK_AND_ASSIGN(const auto huge_views, CheckInputs(huge));
  EXPECT_THAT(ReadIntegers(huge_views[0]),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a UINT64 value is above")));
}

TEST(TensorCodecTest, SharedMemoryIsUnimplemented) {
  auto request = RequestWith({"INT64", {1}, Raw<int64_t>({1})});
  (*request.mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("r");
  EXPECT_THAT(CheckInputs(request), StatusIs(absl::StatusCode::kUnimplemented,
                                             HasSubstr("shared memory is not supported")));
}

}  // namespace
}  // namespace assay
