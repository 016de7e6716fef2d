#include "engine/lifecycle/placement.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

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
  if (kv > 0) {
    absl::StrAppend(&text, " + ", Mb(kv), " keys and values (", kv_tokens, " tokens)");
  }
  const uint64_t used = weights + scratch + graphs + reserve + kv;
  absl::StrAppend(&text, " + ", Mb(free - std::min(free, used)), " left");
  if (room_for_next) absl::StrAppend(&text, ", enough for the next version beside it");
  return text;
}

absl::StatusOr<GpuMemory> PlanGpuMemory(const GpuMemoryInputs& in) {
  GpuMemory plan = {
      .free = in.free, .weights = in.weights, .scratch = in.scratch, .graphs = kGraphs};
  plan.reserve = kReserve + static_cast<uint64_t>(kReserveShare * static_cast<double>(in.total));
  plan.sequence = in.token_bytes * static_cast<uint64_t>(in.context_tokens);
  const uint64_t fixed = plan.weights + plan.scratch + plan.graphs + plan.reserve;
  if (fixed + plan.sequence > in.free) {
    return absl::ResourceExhaustedError(
        absl::StrCat("does not fit on the GPU: ", Mb(plan.weights), " weights + ", Mb(plan.scratch),
                     " scratch + ", Mb(plan.graphs), " graphs + ", Mb(plan.reserve), " reserve + ",
                     Mb(plan.sequence), " keys and values of one sequence of ", in.context_tokens,
                     " tokens, ", Mb(in.free), " are free"));
  }
  const uint64_t rest = in.free - fixed;
  if (in.token_bytes == 0) {
    plan.room_for_next = rest >= plan.weights + plan.scratch + plan.graphs;
    return plan;
  }
  // A version to come needs its weights, a scratch and one sequence: left to it where it takes no
  // more than half.
  const uint64_t next = plan.weights + plan.scratch + plan.graphs + plan.sequence;
  uint64_t kv = next <= rest / 2 ? rest - next : rest;
  if (in.wanted_kv > 0) kv = std::min(rest, std::max(in.wanted_kv, plan.sequence));
  kv = std::min(kv, in.token_bytes * static_cast<uint64_t>(in.useful_tokens));
  plan.kv = std::max(kv, plan.sequence);
  plan.kv_tokens = static_cast<int64_t>(plan.kv / in.token_bytes);
  plan.room_for_next = rest - plan.kv >= next;
  return plan;
}

}  // namespace assay
