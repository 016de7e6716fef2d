// A user's labelled data, for each kind of model.
#include "engine/lifecycle/labelled.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using assay::ModelTask;
  for (const ModelTask task : {ModelTask::kGenerate, ModelTask::kEmbed, ModelTask::kClassify}) {
    assay::ModelSpec spec;
    spec.task = task;
    spec.num_labels = 2;
    spec.labels = {"short", "long"};
    const auto set = assay::ReadLabelledSet(assay::TextOf(data, size), "fuzz.jsonl", spec);
    assay::RequireCode(set.status(), absl::StatusCode::kInvalidArgument);
    if (!set.ok()) continue;
    assay::Require(!set->items.empty() && set->items.size() <= 4096, "the number of items");
    for (const assay::LabelledItem& item : set->items) {
      const bool label = item.label >= 0 && item.label < 2;
      assay::Require(task != ModelTask::kClassify || label, "a label of the model");
    }
  }
  return 0;
}
