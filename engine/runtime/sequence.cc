#include "engine/runtime/sequence.h"

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr float kMaxTemperature = 100, kMaxPenalty = 100;
constexpr int kMaxLogprobs = 20;
constexpr size_t kMaxStopStrings = 16, kMaxStopBytes = 1024, kMaxStopTokens = 256;

absl::Status InRange(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return absl::OkStatus();  // false for NaN
  return absl::InvalidArgumentError(
      high == std::numeric_limits<int32_t>::max()
          ? absl::StrCat(name, "=", value, " is below ", low)
          : absl::StrCat(name, "=", value, " is outside [", low, ", ", high, "]"));
}

absl::Status AtMost(const char* name, size_t count, size_t most) {
  if (count <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " has ", count, " entries, at most ", most, " are allowed"));
}

}  // namespace

absl::Status Validate(const SamplingParams& params) {
  RETURN_IF_ERROR(InRange("temperature", params.temperature, 0, kMaxTemperature));
  RETURN_IF_ERROR(InRange("top_k", params.top_k, 0, INT32_MAX));
  RETURN_IF_ERROR(InRange("top_p", params.top_p, 0, 1));
  if (params.top_p == 0)
    return absl::InvalidArgumentError("top_p=0 would keep no token: it must be in (0, 1]");
  RETURN_IF_ERROR(InRange("min_p", params.min_p, 0, 1));
  RETURN_IF_ERROR(InRange("repetition_penalty", params.repetition_penalty, 0.01, kMaxPenalty));
  RETURN_IF_ERROR(InRange("presence_penalty", params.presence_penalty, -kMaxPenalty, kMaxPenalty));
  RETURN_IF_ERROR(
      InRange("frequency_penalty", params.frequency_penalty, -kMaxPenalty, kMaxPenalty));
  RETURN_IF_ERROR(InRange("max_tokens", params.max_tokens, 1, INT32_MAX));
  RETURN_IF_ERROR(InRange("logprobs", params.logprobs, -1, kMaxLogprobs));
  RETURN_IF_ERROR(AtMost("stop", params.stop.size(), kMaxStopStrings));
  RETURN_IF_ERROR(AtMost("stop_token_ids", params.stop_token_ids.size(), kMaxStopTokens));
  for (const std::string& s : params.stop) {
    if (s.empty()) return absl::InvalidArgumentError("stop has an empty string");
    if (s.size() > kMaxStopBytes)
      return absl::InvalidArgumentError(absl::StrCat(
          "stop has a string of ", s.size(), " bytes, at most ", kMaxStopBytes, " are allowed"));
  }
  return absl::OkStatus();
}

}  // namespace assay
