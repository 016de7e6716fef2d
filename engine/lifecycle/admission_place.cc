// Profile, first part: which recipe a model gets, and on which device.
#include <fnmatch.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/ladder.h"
#include "quant/policy/recipe_list.h"

namespace assay {
namespace {

bool Keeps(const Recipe& recipe, const LinearSlot& slot) {
  return std::any_of(recipe.keep.begin(), recipe.keep.end(),
                     [&](const std::string& glob) { return Matches(glob, slot); });
}

Plan MakePlan(const Recipe& recipe, const std::vector<LinearSlot>& slots, bool tied_head) {
  Plan plan;
  for (const LinearSlot& slot : slots) {
    const bool table = slot.kind == LinearSlot::Kind::kEmbedding;
    SlotPlan one{.scheme = table ? recipe.embedding_scheme : recipe.scheme,
                 .activation = recipe.activation,
                 .why = "recipe " + recipe.name};
    if (Keeps(recipe, slot)) {
      one.scheme = recipe.fallback_scheme;
      one.activation = recipe.fallback_activation;
      one.why = "the recipe keeps it";
      one.kept = true;
    }
    // Floating schemes multiply in floating point; a table that is only looked up, not at all.
    const absl::StatusOr<const QuantScheme*> scheme = FindScheme(one.scheme);
    const bool floating = scheme.ok() && (*scheme)->is_floating();
    if (floating || (table && !tied_head)) one.activation = ActivationMode::kA16;
    plan[slot.name] = std::move(one);
  }
  return plan;
}

// A recipe of one scheme that the request asked for; the budget stays the policy's.
absl::Status TakeScheme(const std::string& scheme_name, PolicyDecision& decision) {
  ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(scheme_name));
  decision.ladder.rungs.resize(1);
  Recipe& recipe = decision.ladder.rungs.front();
  recipe.name = "request";
  recipe.scheme = recipe.embedding_scheme = scheme_name;
  recipe.activation = scheme->is_floating() ? ActivationMode::kA16 : ActivationMode::kA8Token;
  recipe.activation_name = std::string(Name(recipe.activation));
  constexpr int64_t kTypicalSide = 4096;
  recipe.bits_per_weight = scheme->bits_per_weight({kTypicalSide, kTypicalSide});
  decision.trace.push_back("the request asks for scheme " + scheme_name);
  return absl::OkStatus();
}

// The policy's choice, unless the request brings its own.
absl::Status ChooseRecipe(Admission& a) {
  PolicyDecision& decision = a.report.decision;
  ASSIGN_OR_RETURN(decision, a.host.options.policy.Choose(a.report.hardware, a.report.bytes_f32));
  if (!a.request.scheme.empty()) RETURN_IF_ERROR(TakeScheme(a.request.scheme, decision));
  if (!a.request.recipe.empty()) {
    ASSIGN_OR_RETURN(decision.ladder, FindLadder(a.request.recipe));
    decision.reason = "the request asks for recipe " + a.request.recipe;
    decision.trace.push_back(decision.reason);
  }
  if (a.request.exact.has_value()) {
    decision.ladder.rungs = {*a.request.exact};
    decision.reason = "the request brings its own recipe, " + a.request.exact->name;
    decision.trace.push_back(decision.reason);
  }
  if (a.request.budget.has_value()) {
    decision.budget = *a.request.budget;
    decision.trace.emplace_back("the request brings its own budget");
  }
  TakeRung(a);
  return absl::OkStatus();
}

// Whether another model lives on the device: each has one of its own.
std::string Tenant(const Admission& a, const std::string& device) {
  for (const VersionInfo& version : a.host.registry.List()) {
    const bool there =
        version.state == VersionState::kServing || version.state == VersionState::kDraining;
    if (version.name != a.request.name && there && version.report != nullptr &&
        version.report->decision.device == device)
      return version.name;
  }
  return "";
}

HardwareInfo HardwareFor(const Admission& a) {
  const Gpus* const gpus = a.host.options.gpus;
  if (gpus == nullptr) return ProbeHardware();
  HardwareInfo hardware = DescribeHardware(*gpus);
  for (size_t i = 0; i < hardware.gpus.size(); ++i) {
    const Gpus::Found& found = gpus->all()[i];
    std::string& unusable = hardware.gpus[i].unusable;
    if (!unusable.empty()) continue;
    if (const absl::Status takes = found.backend->Takes(a.spec); !takes.ok()) {
      unusable = std::string(takes.message());
    } else if (const std::string tenant = Tenant(a, found.name); !tenant.empty()) {
      unusable = absl::StrCat("it serves ", tenant, ", and a GPU serves one model");
    }
  }
  return hardware;
}

const Gpus::Found* FindGpu(const Admission& a, const std::string& name) {
  if (a.host.options.gpus == nullptr) return nullptr;
  for (const Gpus::Found& found : a.host.options.gpus->all()) {
    if (found.name == name) return &found;
  }
  return nullptr;
}

// What around its products a recipe wants that only the CPU computes.
std::string NotOnGpus(const Recipe& recipe) {
  if (!recipe.rotate_inputs.empty()) return "inputs are rotated while serving (rotate_inputs)";
  if (recipe.low_rank > 0) return "layers have a low-rank branch (low_rank)";
  if (recipe.kv_key_channels) return "keys have calibrated channels (kv_keys)";
  if (recipe.int8_scores) return "attention multiplies in INT8 (attention: int8)";
  for (const std::string& transform : recipe.transforms) {
    if (transform.rfind("hadamard", 0) == 0) return "the residual stream is rotated (hadamard)";
  }
  return "";
}

// OK, or why the device does not run the chosen recipe.
absl::Status Refusal(const Admission& a) {
  if (!OnGpu(a)) return absl::OkStatus();
  RETURN_IF_ERROR(a.backend->TakesKv(KvFormatOf(a.recipe())));
  if (const std::string other = NotOnGpus(a.recipe()); !other.empty())
    return absl::UnimplementedError(absl::StrCat("recipe ", a.recipe().name, ": ", other));
  for (const LinearSlot& slot : a.slots) {
    const SlotPlan& plan = a.plan.find(slot.name)->second;
    const absl::StatusOr<const QuantScheme*> scheme = FindScheme(plan.scheme);
    if (!scheme.ok() || !(*scheme)->Accepts(slot.shape).ok()) continue;  // said by who quantizes
    const absl::Status supported = a.backend->Supports(**scheme, slot.shape, plan.activation);
    if (!supported.ok())
      return absl::UnimplementedError(
          absl::StrCat("recipe ", a.recipe().name, ", ", slot.name, " in ", plan.scheme, "/",
                       std::string(Name(plan.activation)), ": ", supported.message()));
  }
  return absl::OkStatus();
}

// Whether a version of the same model is on a GPU: its next one does not fall to the CPU unseen.
bool ServesOnAGpu(const Admission& a) {
  const std::vector<VersionInfo> versions = a.host.registry.List();
  return std::any_of(versions.begin(), versions.end(), [&](const VersionInfo& version) {
    return version.name == a.request.name && version.state == VersionState::kServing &&
           version.report != nullptr && version.report->decision.device != "cpu";
  });
}

}  // namespace

bool Matches(const std::string& glob, const LinearSlot& slot) {
  const auto matches = [&](const std::string& name) {
    return fnmatch(glob.c_str(), name.c_str(), 0) == 0;
  };
  return matches(slot.name) || std::any_of(slot.weights.begin(), slot.weights.end(), matches);
}

uint64_t OtherElements(const Admission& a) {
  uint64_t total = 0;
  for (const CheckpointTensor& tensor : a.checkpoint->tensors()) {
    total += static_cast<uint64_t>(tensor.shape.elements());
  }
  for (const LinearSlot& slot : a.slots)
    total -= std::min(total, static_cast<uint64_t>(slot.shape.elements()));
  return total;
}

absl::Status RejectSize(Admission& a, const std::string& reason) {
  a.report.verdict = "rejected";
  a.report.reason = reason;
  return absl::ResourceExhaustedError(reason);
}

absl::Status PlaceModel(Admission& a) {
  HardwareInfo& hardware = a.report.hardware;
  hardware = HardwareFor(a);
  std::string no_room;
  for (;;) {
    RETURN_IF_ERROR(ChooseRecipe(a));
    const std::string& device = a.report.decision.device;
    const Gpus::Found* const gpu = FindGpu(a, device);
    a.backend = gpu == nullptr ? &CpuBackend() : gpu->backend.get();
    std::vector<std::string>& keep = a.recipe().keep;
    keep.insert(keep.end(), a.request.keep.begin(), a.request.keep.end());
    a.plan = MakePlan(a.recipe(), a.slots, a.spec.tied_head);
    if (gpu == nullptr && !no_room.empty() && ServesOnAGpu(a))
      return RejectSize(a, absl::StrCat(no_room, "; ", a.request.name,
                                        " serves on a GPU, so its next version does not go to the "
                                        "CPU: unload it first, or lower gpu.kv_cache"));
    absl::Status refusal = Refusal(a);
    if (refusal.ok() && gpu != nullptr) refusal = FitsGpu(a);
    if (refusal.ok()) return absl::OkStatus();
    if (absl::IsResourceExhausted(refusal))
      no_room = absl::StrCat(device, ": ", std::string(refusal.message()));
    hardware.gpus[static_cast<size_t>(gpu - a.host.options.gpus->all().data())].unusable =
        std::string(refusal.message());
  }
}

}  // namespace assay
