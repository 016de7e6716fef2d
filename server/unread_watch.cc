#include "server/unread_watch.h"

#include <grpc/grpc.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace assay {

UnreadWatch::~UnreadWatch() {
  for (const auto& [call, sending] : sending_) grpc_call_unref(call);
}

void UnreadWatch::Begin(grpc_call* call, const std::string& method) {
  if (limit_ <= absl::ZeroDuration()) return;
  const absl::Time now = clock_.Now();
  const MutexLock lock(mu_);
  if (sending_.try_emplace(call, Sending{now, method}).second) grpc_call_ref(call);
}

void UnreadWatch::End(grpc_call* call) {
  {
    const MutexLock lock(mu_);
    if (sending_.erase(call) == 0) return;
  }
  grpc_call_unref(call);
}

// gRPC may call reactors and interceptors back out of the cancellation: without the lock.
void UnreadWatch::Look() {
  const absl::Time before = clock_.Now() - limit_;
  std::vector<std::pair<grpc_call*, std::string>> late;
  {
    const MutexLock lock(mu_);
    for (auto& [call, sending] : sending_) {
      if (sending.since > before || std::exchange(sending.cut, true)) continue;
      grpc_call_ref(call);
      late.emplace_back(call, sending.method);
    }
  }
  const std::string reason = absl::StrCat("the client did not read for limits.max_unread_time=",
                                          absl::FormatDuration(limit_));
  for (const auto& [call, method] : late) {
    grpc_call_cancel_with_status(call, GRPC_STATUS_RESOURCE_EXHAUSTED, reason.c_str(), nullptr);
    grpc_call_unref(call);
    metrics_.Unread();
  }
  if (!late.empty())
    Log(LogLevel::kWarning, "RPCs cut",
        {{"reason", reason}, {"method", late.front().second}, {"rpcs", absl::StrCat(late.size())}});
}

}  // namespace assay
