// Open: what the checkpoint is. Profile: what this machine is, which recipe it gets, and whether
// the model fits before a byte of it is spent.
#include <fnmatch.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/cpu_info.h"
#include "base/mapped_file.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/lifecycle/ladder.h"
#include "engine/lifecycle/memory_model.h"
#include "quant/policy/recipe_list.h"

namespace assay {
namespace {

std::string_view TaskName(ModelTask task) {
  switch (task) {
    case ModelTask::kGenerate:
      return "generate";
    case ModelTask::kEmbed:
      return "embed";
    case ModelTask::kClassify:
      return "classify";
  }
  return "unknown";
}

uint64_t SlotElements(const std::vector<LinearSlot>& slots) {
  uint64_t total = 0;
  for (const LinearSlot& slot : slots) total += static_cast<uint64_t>(slot.shape.elements());
  return total;
}

// Elements of the checkpoint that are in no slot: norms, position tables, biases.
uint64_t OtherElements(const Admission& a) {
  uint64_t total = 0;
  for (const CheckpointTensor& tensor : a.checkpoint->tensors()) {
    total += static_cast<uint64_t>(tensor.shape.elements());
  }
  return total - std::min(total, SlotElements(a.slots));
}

bool Matches(const std::string& glob, const LinearSlot& slot) {
  const auto matches = [&](const std::string& name) {
    return fnmatch(glob.c_str(), name.c_str(), 0) == 0;
  };
  return matches(slot.name) || std::any_of(slot.weights.begin(), slot.weights.end(), matches);
}

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

bool HasIntegerKv(const Recipe& recipe) {
  return recipe.kv_dtype == DType::kI8 || recipe.kv_dtype == DType::kU4;
}

MemoryEstimate Estimate(const Admission& a) {
  EngineOptions engine = a.host.options.engine;
  engine.kv_format = KvFormatOf(a.recipe());
  return EstimateMemory({.spec = a.spec,
                         .slots = a.slots,
                         .plan = a.plan,
                         .other_bytes = OtherElements(a) * 4,
                         .engine = engine,
                         .serves = !a.request.dry_run,
                         .calibrated = NeedsCalibration(a),
                         .long_context = HasIntegerKv(a.recipe()),
                         .evaluation = a.host.hooks.evaluation.value_or(EvaluationSize{})});
}

uint64_t AvailableBytes(const AdmissionOptions& options) {
  const uint64_t free = CpuDevice().free_bytes();
  if (options.memory_limit_bytes == 0) return free;
  const uint64_t used = CpuDevice().allocated_bytes();
  return std::min(free, options.memory_limit_bytes - std::min(options.memory_limit_bytes, used));
}

absl::Status CheckFits(Admission& a) {
  const MemoryEstimate estimate = Estimate(a);
  a.report.estimated_peak_bytes = estimate.peak;
  uint64_t available = AvailableBytes(a.host.options);
  // What is only kept for a rollback makes room.
  while (a.report.estimated_peak_bytes > available &&
         a.host.registry.RetirePrevious("its memory is needed by an admission")) {
    available = AvailableBytes(a.host.options);
  }
  if (a.report.estimated_peak_bytes <= available) return absl::OkStatus();
  const std::string reason = absl::StrFormat(
      "does not fit: the admission needs up to %.1f MB, while it is at %s (weights %.1f MB as %s, "
      "engine %.1f MB), %.1f MB are available",
      estimate.peak / 1e6, estimate.moment, estimate.weights / 1e6, a.recipe().scheme,
      estimate.engine / 1e6, available / 1e6);
  a.report.verdict = "rejected";
  a.report.reason = reason;
  return absl::ResourceExhaustedError(reason);
}

// The recipe's methods, and the data that they are fitted to.
absl::Status FindMethods(Admission& a) {
  ASSIGN_OR_RETURN(a.rounding, FindRounding(a.recipe().rounding));
  for (const std::string& name : a.recipe().transforms) {
    ASSIGN_OR_RETURN(a.transforms.emplace_back(), FindTransform(name));
    if (a.transforms.back().kind != TransformKind::kHadamard || a.transforms.size() == 1) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("a rotation mixes the channels that other transforms rescale, so it comes "
                     "first: transforms=",
                     absl::StrJoin(a.recipe().transforms, ",")));
  }
  std::string& path = a.recipe().calibration.path;
  if (path.empty()) path = a.host.options.calibration_path;
  if (a.request.calibration.empty()) return absl::OkStatus();
  path = a.request.calibration;
  return Annotate(MappedFile::Open(path).status(), "calibration=" + path);
}

void OverrideSearch(const SearchRecipe& wanted, SearchRecipe& search) {
  if (!wanted.candidates.empty()) search.candidates = wanted.candidates;
  if (wanted.max_bytes > 0) search.max_bytes = wanted.max_bytes;
  if (wanted.max_loss > 0) search.max_loss = wanted.max_loss;
}

// The policy's choice, unless the request brings its own.
absl::Status ChooseRecipe(Admission& a) {
  a.report.hardware = ProbeHardware();
  PolicyDecision& decision = a.report.decision;
  ASSIGN_OR_RETURN(decision,
                   a.host.options.policy.Choose(a.report.hardware, a.report.bytes_f32, false));
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
  std::vector<std::string>& keep = a.recipe().keep;
  keep.insert(keep.end(), a.request.keep.begin(), a.request.keep.end());
  return absl::OkStatus();
}

// A name that means no layer is a mistake, not a wish that came true.
absl::Status CheckNames(const Admission& a, const char* key,
                        const std::vector<std::string>& globs) {
  for (const std::string& glob : globs) {
    if (std::any_of(a.slots.begin(), a.slots.end(),
                    [&](const LinearSlot& slot) { return Matches(glob, slot); })) {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat("no layer of this model has such a name: ", key,
                                                   "=", glob, " recipe=", a.recipe().name,
                                                   "; one is called ", a.slots.back().name));
  }
  return absl::OkStatus();
}

absl::Status MakeEvaluation(Admission& a) {
  const AdmissionOptions& options = a.host.options;
  const EvaluationSize size = a.host.hooks.evaluation.value_or(EvaluationSize{});
  std::string text;
  std::string_view source = BundledEvaluationText();
  std::string origin = "bundled extract of WikiText-2";
  if (!options.evaluation_path.empty()) {
    ASSIGN_OR_RETURN(text, ReadFile(options.evaluation_path));
    source = text;
    origin = options.evaluation_path;
  }
  ASSIGN_OR_RETURN(a.evaluation,
                   MakeEvaluationSet(source, origin, a.tokenizer.get(), a.spec, size));
  if (a.spec.task == ModelTask::kGenerate && HasIntegerKv(a.recipe())) {
    ASSIGN_OR_RETURN(a.long_context,
                     MakeLongContextSet(source, origin, a.tokenizer.get(), a.spec, size));
  }
  a.report.evaluation_set = a.evaluation.name;
  a.report.evaluation_hash = a.evaluation.hash;
  return absl::OkStatus();
}

// Tensors of layers that the configuration does not count would be left out silently.
absl::Status CheckNoLayerIsLeft(const Admission& a) {
  for (const CheckpointTensor& tensor : a.checkpoint->tensors()) {
    for (const char* stack : {"layers.", "layer."}) {
      const size_t at = tensor.name.find(stack);
      if (at == std::string::npos) continue;
      int layer = 0;
      const std::string rest = tensor.name.substr(at + std::strlen(stack));
      if (!absl::SimpleAtoi(rest.substr(0, rest.find('.')), &layer) || layer < a.spec.layers) {
        continue;
      }
      return absl::InvalidArgumentError(absl::StrCat(
          "the configuration counts fewer layers than the checkpoint has: layers=", a.spec.layers,
          " tensor=", tensor.name));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status OpenStage(Admission& a) {
  ASSIGN_OR_RETURN(a.checkpoint, OpenCheckpoint(a.request.path));
  ASSIGN_OR_RETURN(a.family, FamilyOf(*a.checkpoint));
  ASSIGN_OR_RETURN(a.spec, a.family->parse(*a.checkpoint));
  RETURN_IF_ERROR(CheckNoLayerIsLeft(a));
  a.slots = a.family->slots(a.spec);
  if (HasTokenizer(a.checkpoint->tokenizer())) {
    ASSIGN_OR_RETURN(a.tokenizer, MakeTokenizer(a.checkpoint->tokenizer()));
  }
  ASSIGN_OR_RETURN(a.report.source_hash, a.host.cache.ContentHash(*a.checkpoint, a.request.path));
  a.report.source_format = std::string(a.checkpoint->format());
  a.report.task = std::string(TaskName(a.spec.task));
  a.report.bytes_f32 = (SlotElements(a.slots) + OtherElements(a)) * 4;
  a.note = absl::StrCat(a.spec.architecture, ", ", a.checkpoint->tensors().size(), " tensors, ",
                        absl::StrFormat("%.1f million weights", a.report.bytes_f32 / 4e6));
  return absl::OkStatus();
}

absl::Status ProfileStage(Admission& a) {
  RETURN_IF_ERROR(ChooseRecipe(a));
  OverrideSearch(a.request.search, a.recipe().search);
  const SearchRecipe& search = a.recipe().search;
  if (search.candidates.empty() && (search.max_bytes > 0 || search.max_loss > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a limit of bytes or loss is for recipes that search: recipe=", a.recipe().name,
        " max_bytes=", search.max_bytes));
  }
  const DType kv = a.recipe().kv_dtype;
  if (!IsKvDType(kv)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the KV cache on the CPU is f32, f16, i8 or u4: kv=", std::string(Name(kv)),
                     " recipe=", a.recipe().name));
  }
  RETURN_IF_ERROR(CheckNames(a, "keep", a.recipe().keep));
  RETURN_IF_ERROR(CheckNames(a, "rotate_inputs", a.recipe().rotate_inputs));
  if (a.recipe().kv_window + a.recipe().kv_sinks > 0) {
    a.report.decision.trace.push_back(
        "rows of the KV cache in 16 bit belong to one sequence: the prefix cache is off for this "
        "model");
  }
  RETURN_IF_ERROR(FindMethods(a));
  a.plan = MakePlan(a.recipe(), a.slots, a.spec.tied_head);
  RETURN_IF_ERROR(CheckFits(a));
  RETURN_IF_ERROR(MakeEvaluation(a));
  a.note =
      absl::StrCat("rule ", a.report.decision.rule, ", recipe ", a.recipe().name, ", ",
                   absl::StrFormat("peak %.1f MB estimated", a.report.estimated_peak_bytes / 1e6));
  return absl::OkStatus();
}

}  // namespace assay
