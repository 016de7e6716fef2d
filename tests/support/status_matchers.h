// EXPECT_THAT(f(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("group"))), IsOk(),
// IsOkAndHolds(m). There is no NotOk: a test names the error that it expects.
#pragma once
#include <gmock/gmock.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace assay {

inline const absl::Status& GetStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& status) {
  return status.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).ok();
}
MATCHER_P(StatusIs, code, "has status code " + absl::StatusCodeToString(code)) {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code;
}
MATCHER_P2(StatusIs, code, message,
           "has status code " + absl::StatusCodeToString(code) + " and a matching message") {
  *result_listener << GetStatus(arg).ToString();
  return GetStatus(arg).code() == code &&
         testing::Matches(message)(std::string(GetStatus(arg).message()));
}
MATCHER_P(IsOkAndHolds, matcher, "is OK and holds a matching value") {
  *result_listener << GetStatus(arg).ToString();
  return arg.ok() && testing::ExplainMatchResult(matcher, *arg, result_listener);
}

#define ASSERT_OK(expr) ASSERT_THAT(expr, ::assay::IsOk())
#define EXPECT_OK(expr) EXPECT_THAT(expr, ::assay::IsOk())
#define ASSAY_TEST_CONCAT_INNER_(a, b) a##b
#define ASSAY_TEST_CONCAT_(a, b) ASSAY_TEST_CONCAT_INNER_(a, b)
#define ASSERT_OK_AND_ASSIGN_INNER_(tmp, lhs, expr) \
  auto tmp = (expr);                                \
  ASSERT_OK(tmp);                                   \
  lhs = *std::move(tmp)
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  ASSERT_OK_AND_ASSIGN_INNER_(ASSAY_TEST_CONCAT_(test_or_, __LINE__), lhs, expr)

}  // namespace assay
