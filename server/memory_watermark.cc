#include "server/memory_watermark.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "base/cpu_info.h"
#include "base/log.h"
#include "base/retry_after.h"

namespace assay {
namespace {

constexpr absl::Duration kBetweenLooks = absl::Milliseconds(100), kBetweenLogs = absl::Seconds(10),
                         kRetry = absl::Seconds(1);

}  // namespace

double UsedMemoryShare() {
  const auto total = static_cast<double>(HostCpu().memory_bytes);
  return total > 0 ? 1 - static_cast<double>(AvailableMemoryBytes()) / total : 0;
}

uint64_t QuotaWithin(uint64_t memory, uint64_t wanted) {
  return memory == 0 ? wanted : std::min(wanted, memory / 4);
}

absl::Status MemoryWatermark::Check() {
  if (share_ <= 0) return absl::OkStatus();
  const absl::Time now = clock_.Now();
  const MutexLock lock(mu_);
  if (now - looked_ >= kBetweenLooks) {
    looked_ = now;
    now_ = used_();
  }
  if (now_ <= share_) return absl::OkStatus();
  absl::Status refused = absl::ResourceExhaustedError(absl::StrFormat(
      "memory is nearly used up: %.1f %% used, limits.memory_watermark=%g", 100 * now_, share_));
  if (now - logged_ >= kBetweenLogs) {
    logged_ = now;
    Log(LogLevel::kWarning, "requests are refused", {{"reason", std::string(refused.message())}});
  }
  SetRetryAfter(kRetry, refused);
  return refused;
}

}  // namespace assay
