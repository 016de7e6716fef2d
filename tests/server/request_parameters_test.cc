#include "server/request_parameters.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Parameters = google::protobuf::Map<std::string, inference::InferParameter>;

TEST(RequestParametersTest, ReadsSamplingInAnyNumberType) {
  Parameters p;
  p["max_tokens"].set_int64_param(7);
  p["temperature"].set_double_param(0.5);
  p["top_k"].set_uint64_param(40);
  p["seed"].set_uint64_param(std::numeric_limits<uint64_t>::max());
  p["stop"].set_string_param("END");
  p["stop_token_ids"].set_string_param("[3, 4]");
  p["stream"].set_bool_param(false);
  p["timeout"].set_int64_param(1500);
  ASSERT_OK_AND_ASSIGN(const RequestParameters parsed, ParseParameters(p, ModelTask::kGenerate));
  EXPECT_EQ(parsed.sampling.max_tokens, 7);
  EXPECT_EQ(parsed.sampling.temperature, 0.5f);
  EXPECT_EQ(parsed.sampling.top_k, 40);
  EXPECT_EQ(parsed.sampling.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_THAT(parsed.sampling.stop, ElementsAre("END"));
  EXPECT_THAT(parsed.sampling.stop_token_ids, ElementsAre(3, 4));
  EXPECT_FALSE(parsed.stream);
  EXPECT_EQ(parsed.timeout, absl::Microseconds(1500));
}

TEST(RequestParametersTest, SeveralStopStringsAreAJsonArray) {
  Parameters p;
  p["stop"].set_string_param(R"(["\n\n", "User:"])");
  ASSERT_OK_AND_ASSIGN(const RequestParameters parsed, ParseParameters(p, ModelTask::kGenerate));
  EXPECT_THAT(parsed.sampling.stop, ElementsAre("\n\n", "User:"));
}

TEST(RequestParametersTest, AStopStringMayBeginWithABracket) {
  Parameters p;
  p["stop"].set_string_param("[INST]");
  ASSERT_OK_AND_ASSIGN(const RequestParameters parsed, ParseParameters(p, ModelTask::kGenerate));
  EXPECT_THAT(parsed.sampling.stop, ElementsAre("[INST]"));
}

TEST(RequestParametersTest, AnUnknownParameterIsAnErrorThatListsTheKnown) {
  Parameters p;
  p["temprature"].set_double_param(1);
  EXPECT_THAT(
      ParseParameters(p, ModelTask::kGenerate),
      StatusIs(absl::StatusCode::kInvalidArgument,
               HasSubstr("unknown parameter 'temprature'; this model takes: max_tokens, ")));
  Parameters generation;
  generation["max_tokens"].set_int64_param(1);
  EXPECT_THAT(ParseParameters(generation, ModelTask::kEmbed),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("takes: truncate")));
}

TEST(RequestParametersTest, WrongTypesNameTheParameter) {
  const auto expect = [](const char* name, auto set, const char* message) {
    Parameters p;
    set(p[name]);
    EXPECT_THAT(ParseParameters(p, ModelTask::kGenerate),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)));
  };
  expect(
      "max_tokens", [](auto& v) { v.set_double_param(1.5); }, "'max_tokens': expected a whole");
  expect(
      "max_tokens", [](auto& v) { v.set_double_param(1e300); }, "expected a whole number");
  expect(
      "max_tokens", [](auto& v) { v.set_string_param("7"); }, "expected a whole number");
  expect(
      "temperature", [](auto& v) { v.set_double_param(std::nan("")); }, "a finite number");
  expect(
      "stream", [](auto& v) { v.set_int64_param(1); }, "'stream': expected a boolean");
  expect(
      "stop", [](auto& v) { v.set_string_param("[1, 2]"); }, "a JSON array of strings");
  expect(
      "stop_token_ids", [](auto& v) { v.set_string_param("[\"a\"]"); }, "array of token ids");
  expect(
      "stop_token_ids", [](auto& v) { v.set_string_param("[1, 4294967298]"); },
      "token ids from 0 to 2147483647, found 4294967298");
  expect(
      "stop_token_ids", [](auto& v) { v.set_string_param("[-1]"); }, "found -1");
  expect(
      "timeout", [](auto& v) { v.set_int64_param(-1); }, "'timeout': expected microseconds");
}

TEST(RequestParametersTest, ValuesOutOfRangeAreRefused) {
  Parameters p;
  p["top_p"].set_double_param(7);
  EXPECT_THAT(ParseParameters(p, ModelTask::kGenerate),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("top_p")));
}

TEST(RequestParametersTest, ProtocolParametersThatMeanNothingHereMustBeUnset) {
  Parameters p;
  p["sequence_id"].set_int64_param(0);
  p["sequence_start"].set_bool_param(false);
  p["priority"].set_uint64_param(0);
  EXPECT_OK(ParseParameters(p, ModelTask::kEmbed));
  p["priority"].set_uint64_param(3);
  EXPECT_THAT(ParseParameters(p, ModelTask::kEmbed),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'priority'")));
}

}  // namespace
}  // namespace assay
