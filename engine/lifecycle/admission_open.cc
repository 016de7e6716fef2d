// Open: what the checkpoint is. Profile: what this machine is, which recipe it gets, and whether
// the model fits before a byte of it is spent.
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

// What the checkpoint says of itself.
absl::Status ReadDescription(Admission& a) {
  ASSIGN_OR_RETURN(a.family, FamilyOf(*a.checkpoint));
  ASSIGN_OR_RETURN(a.spec, a.family->parse(*a.checkpoint));
  RETURN_IF_ERROR(CheckNoLayerIsLeft(a));
  a.slots = a.family->slots(a.spec);
  if (HasTokenizer(a.checkpoint->tokenizer())) {
    ASSIGN_OR_RETURN(a.tokenizer, MakeTokenizer(a.checkpoint->tokenizer()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status OpenStage(Admission& a) {
  ASSIGN_OR_RETURN(a.checkpoint, OpenCheckpoint(a.request.path));
  RETURN_IF_ERROR(Annotate(ReadDescription(a), a.request.path));
  ASSIGN_OR_RETURN(a.report.source_hash, a.host.cache.ContentHash(*a.checkpoint, a.request.path));
  a.report.source_format = std::string(a.checkpoint->format());
  a.report.task = std::string(TaskName(a.spec.task));
  a.report.bytes_f32 = (SlotElements(a.slots) + OtherElements(a)) * 4;
  a.note = absl::StrCat(a.spec.architecture, ", ", a.checkpoint->tensors().size(), " tensors, ",
                        absl::StrFormat("%.1f million weights", a.report.bytes_f32 / 4e6));
  return absl::OkStatus();
}

absl::Status ProfileStage(Admission& a) {
  RETURN_IF_ERROR(PlaceModel(a));
  OverrideSearch(a.request.search, a.recipe().search);
  const SearchRecipe& search = a.recipe().search;
  if (search.candidates.empty() && (search.max_bytes > 0 || search.max_loss > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a limit of bytes or loss is for recipes that search: recipe=", a.recipe().name,
        " max_bytes=", search.max_bytes));
  }
  if (const absl::Status kv = a.backend->TakesKv(KvFormatOf(a.recipe())); !kv.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(kv.message(), " recipe=", a.recipe().name));
  }
  RETURN_IF_ERROR(CheckNames(a, "keep", a.recipe().keep));
  RETURN_IF_ERROR(CheckNames(a, "rotate_inputs", a.recipe().rotate_inputs));
  if (a.recipe().kv_window + a.recipe().kv_sinks > 0) {
    a.report.decision.trace.push_back(
        "rows of the KV cache in 16 bit belong to one sequence: the prefix cache is off for this "
        "model");
  }
  RETURN_IF_ERROR(FindMethods(a));
  RETURN_IF_ERROR(CheckFits(a));
  RETURN_IF_ERROR(MakeEvaluation(a));
  a.note =
      absl::StrCat("rule ", a.report.decision.rule, ", recipe ", a.recipe().name, ", ",
                   absl::StrFormat("peak %.1f MB estimated", a.report.estimated_peak_bytes / 1e6));
  return absl::OkStatus();
}

}  // namespace assay
