#include "engine/lifecycle/placement.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/runtime/kv_cache.h"

namespace assay {
namespace {

// What a driver, its libraries and fragmentation may still take.
constexpr uint64_t kReserve = uint64_t{512} << 20;
constexpr double kReserveShare = 0.05;
// Captured steps: 16 sizes of 1 to 2 MiB each.
constexpr uint64_t kGraphs = uint64_t{32} << 20;

std::string Mb(uint64_t bytes) { return absl::StrFormat("%.1f MB", bytes / 1e6); }

}  // namespace

HardwareInfo DescribeHardware(const Gpus& gpus) {
  HardwareInfo hardware = ProbeHardware();
  hardware.why_no_gpu = gpus.why_none();
  for (const Gpus::Found& found : gpus.all()) {
    GpuInfo gpu = {.name = found.properties.name,
                   .compute_capability = found.profile.compute,
                   .memory_bytes = found.properties.memory_bytes,
                   .unusable = found.why_not};
    if (found.backend != nullptr) {
      if (const absl::Status health = found.backend->health(); !health.ok())
        gpu.unusable = std::string(health.message());
    }
    hardware.gpus.push_back(std::move(gpu));
  }
  return hardware;
}

std::string GpuMemory::ToString() const {
  std::string text = absl::StrCat(Mb(free), " free = ", Mb(weights), " weights + ", Mb(scratch),
                                  " scratch + ", Mb(graphs), " graphs + ", Mb(reserve), " reserve");
  if (comparisons > 0) absl::StrAppend(&text, " + ", Mb(comparisons), " comparisons");
  if (kv > 0) {
    absl::StrAppend(&text, " + ", Mb(kv), " keys and values (", kv_tokens, " tokens)");
  }
  const uint64_t used = weights + scratch + comparisons + graphs + reserve + kv;
  absl::StrAppend(&text, " + ", Mb(free - std::min(free, used)), " left");
  if (clipped) absl::StrAppend(&text, "; sequences are clipped to ", context_tokens, " tokens");
  if (room_for_next) absl::StrAppend(&text, "; enough for the next version beside it");
  return text;
}

absl::StatusOr<GpuMemory> PlanGpuMemory(const GpuMemoryInputs& in) {
  GpuMemory plan = {.free = in.free,
                    .weights = in.weights,
                    .scratch = in.scratch,
                    .comparisons = in.comparisons,
                    .graphs = kGraphs,
                    .context_tokens = in.context_tokens};
  plan.reserve = kReserve + static_cast<uint64_t>(kReserveShare * static_cast<double>(in.total));
  const uint64_t least = in.token_bytes * static_cast<uint64_t>(in.least_tokens);
  const uint64_t engine = plan.scratch + plan.comparisons + plan.graphs;
  const uint64_t fixed = plan.weights + plan.reserve;
  if (fixed + engine + least > in.free) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "does not fit on the GPU: ", Mb(plan.weights), " weights + ", Mb(plan.scratch),
        " scratch + ", Mb(plan.comparisons), " comparisons + ", Mb(plan.graphs), " graphs + ",
        Mb(plan.reserve), " reserve + ", Mb(least), " keys and values of one sequence of ",
        in.least_tokens, " tokens, ", Mb(in.free), " are free"));
  }
  const uint64_t rest = in.free - fixed - engine;
  const auto next_with = [&](uint64_t kv) {
    return plan.weights + std::max(in.admission, engine + kv);
  };
  if (in.token_bytes == 0) {
    plan.room_for_next = rest >= next_with(0);
    return plan;
  }
  const uint64_t bound = in.wanted_kv > 0 ? std::min(rest, std::max(in.wanted_kv, least)) : rest;
  const uint64_t longest = in.token_bytes * static_cast<uint64_t>(in.context_tokens);
  plan.clipped = longest > bound;
  const uint64_t block = in.token_bytes * KvCache::kBlockTokens;
  plan.sequence = std::min(longest, bound / block * block);
  plan.context_tokens = static_cast<int64_t>(plan.sequence / in.token_bytes);
  // A version to come needs its weights, its scratch and one sequence: left to it where it takes no
  // more than half.
  const uint64_t next = next_with(plan.sequence);
  const uint64_t share = in.wanted_kv == 0 && next <= rest / 2 ? rest - next : bound;
  plan.kv = std::min(share, in.token_bytes * static_cast<uint64_t>(in.useful_tokens));
  plan.kv = std::max(plan.kv, plan.sequence);
  plan.kv_tokens = static_cast<int64_t>(plan.kv / in.token_bytes);
  plan.room_for_next = rest - plan.kv >= next;
  return plan;
}

absl::Status RoomForAdmission(const GpuMemoryInputs& in) {
  if (in.weights + in.admission <= in.free) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("does not fit on the GPU while it is admitted: ", Mb(in.weights), " weights + ",
                   Mb(in.admission), " for its proof, ", Mb(in.free), " are free"));
}

}  // namespace assay
