// A user's own labelled data: what a model is for, measured beside the comparison with the
// reference. JSON lines, one item each:
//   classifiers  {"text": "...", "label": 1}             a number, or a name from the checkpoint
//   decoders     {"text": "...", "references": ["..."]}  answered greedily, up to 64 tokens
//   embeddings   {"text": "...", "other": "..."}         two texts that mean the same
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/model.h"
#include "engine/model/tokenizer.h"

namespace assay {

struct LabelledItem {
  std::string text, other;
  int32_t label = -1;
  std::vector<std::string> references;
};
struct LabelledSet {
  std::string name;  // for people
  std::string hash;  // SHA-256 of the file
  std::vector<LabelledItem> items;
};
// InvalidArgument names the line and the key: not JSON, a key that is missing, unknown or of
// another type, a label that the model does not have, more than 4096 items, none.
absl::StatusOr<LabelledSet> ReadLabelledSet(std::string_view bytes, const std::string& origin,
                                            const ModelSpec& spec);

struct TaskFigure {
  // "accuracy", "f1_macro", "f1_micro" in [0, 1]; "bleu", "chrf" in [0, 100]; "cosine": the mean.
  std::string metric;
  double value = 0;
};
struct TaskRun {
  const Tokenizer& tokenizer;
  ThreadPool& pool;
  KvFormat kv_format = DType::kF32;
  std::function<absl::Status(double fraction)> progress;  // or empty; an error ends the run
};
// InvalidArgument: an item that does not fit the model's context, by its number.
absl::StatusOr<std::vector<TaskFigure>> MeasureTask(const Model& model, const LabelledSet& set,
                                                    const TaskRun& run);

}  // namespace assay
