// The first byte says what the rest is: a policy, a recipe, a description of hardware (which
// clients may send, too) or a candidate of a search.
#include <nlohmann/json.hpp>

#include "quant/policy/recipe_list.h"
#include "tests/fuzz/require.h"

namespace assay {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNone = absl::StatusCode::kNotFound;

const HardwareInfo& Host() {
  static const auto& host = *new HardwareInfo{.cpu_model = "a processor",
                                              .cpu_isa = "avx2",
                                              .cores = 4,
                                              .memory_bytes = uint64_t{8} << 30,
                                              .gpus = {},
                                              .why_no_gpu = ""};
  return host;
}

void TakePolicy(std::string_view text) {
  const auto policy = Policy::Parse(text, "fuzz.yaml");
  RequireCode(policy.status(), kInvalid);
  if (!policy.ok()) return;
  Require(!policy->rule_names().empty(), "a policy has rules");
  const auto decision = policy->Choose(Host(), 1 << 20);
  RequireCode(decision.status(), kNone);
  if (!decision.ok()) return;
  Require(!decision->ladder.rungs.empty() && !decision->rule.empty(), "a decision is complete");
  (void)ToJson(decision->recipe).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void TakeHardware(std::string_view text) {
  const auto hardware = HardwareFromJson(text);
  RequireCode(hardware.status(), kInvalid);
  if (!hardware.ok()) return;
  const auto again = HardwareFromJson(ToJson(*hardware).dump());
  Require(again.ok() && ToJson(*again) == ToJson(*hardware), "hardware is what it was");
  RequireCode(Policy::Default().Choose(*hardware, 1 << 30).status(), kNone);
}

void Take(uint8_t kind, std::string_view text) {
  switch (kind % 4) {
    case 0:
      return TakePolicy(text);
    case 1:
      return RequireCode(ParseRecipe(text, "fuzz.yaml", "fuzz").status(), kInvalid);
    case 2:
      return TakeHardware(text);
    default:
      RequireCode(ParsePlanCandidate(text, ActivationMode::kA16).status(), kInvalid, kNone);
  }
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) assay::Take(data[0], assay::TextOf(data + 1, size - 1));
  return 0;
}
