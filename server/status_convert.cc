#include "server/status_convert.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "base/retry_after.h"

namespace assay {
namespace {

// A step of a loaded decoder takes tens of milliseconds, a draining server is replaced in seconds.
constexpr absl::Duration kExhaustedPushback = absl::Milliseconds(100);
constexpr const char* kUnavailablePushbackMs = "1000";
constexpr absl::Duration kDeadlineTravel = absl::Milliseconds(20);
constexpr size_t kMaxMessageBytes = 4096;  // trailers are headers: 8 KiB for all of them

}  // namespace

grpc::Status ToGrpc(const absl::Status& status, grpc::ServerContextBase* context) {
  if (status.ok()) return grpc::Status::OK;
  if (context != nullptr && absl::IsResourceExhausted(status)) {
    const absl::Duration pushback = RetryAfter(status).value_or(kExhaustedPushback);
    context->AddTrailingMetadata("grpc-retry-pushback-ms",
                                 absl::StrCat(absl::ToInt64Milliseconds(pushback)));
  }
  if (context != nullptr && absl::IsUnavailable(status)) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", kUnavailablePushbackMs);
  }
  return {static_cast<grpc::StatusCode>(status.code()),
          std::string(status.message().substr(0, kMaxMessageBytes))};
}

absl::Status FromGrpc(const grpc::Status& status) {
  return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
}

absl::Time DeadlineOf(const grpc::ServerContextBase& context, const Clock& clock) {
  const std::chrono::system_clock::time_point deadline = context.deadline(),
                                              now = std::chrono::system_clock::now();
  // gRPC's "never" is the largest time point.
  if (deadline > now + std::chrono::hours(24 * 365)) return absl::InfiniteFuture();
  return clock.Now() + absl::FromChrono(deadline - now);
}

bool IsExpiry(absl::Time arrival, absl::Time deadline, absl::Time now) {
  if (deadline == absl::InfiniteFuture()) return false;
  return now + kDeadlineTravel + (deadline - arrival) / 100 >= deadline;
}

absl::Status CheckWanted(bool cancelled, absl::Time deadline, absl::Time now) {
  if (cancelled) return absl::CancelledError("the client cancelled the request");
  if (now >= deadline) {
    return absl::DeadlineExceededError("the deadline passed before the request was looked at");
  }
  return absl::OkStatus();
}

}  // namespace assay
