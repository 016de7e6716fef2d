#include "engine/lifecycle/labelled.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/sha256.h"
#include "engine/lifecycle/model_pass.h"
#include "engine/model/checkpoint_text.h"
#include "quant/task_metrics.h"

namespace assay {
namespace {

using nlohmann::json;

constexpr size_t kMaxItems = 4096;
constexpr int kAnswerTokens = 64;
constexpr int kMaxPrompt = 2048;  // tokens; longer items are refused
constexpr int kPrefillRows = 256;

const char* LabelKey(ModelTask task) {
  return task == ModelTask::kGenerate ? "references"
         : task == ModelTask::kEmbed  ? "other"
                                      : "label";
}

absl::Status Wrong(const std::string& where, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", what));
}

absl::StatusOr<int32_t> ParseLabel(const json& value, const ModelSpec& spec,
                                   const std::string& where) {
  if (value.is_number_integer() && value >= 0 && value < spec.num_labels) {
    return value.get<int32_t>();
  }
  if (value.is_string()) {
    const auto found =
        std::find(spec.labels.begin(), spec.labels.end(), value.get_ref<const std::string&>());
    if (found != spec.labels.end()) return static_cast<int32_t>(found - spec.labels.begin());
  }
  return Wrong(where, absl::StrCat("\"label\" must be one of 0 to ", spec.num_labels - 1,
                                   spec.labels.empty() ? "" : " or ",
                                   absl::StrJoin(spec.labels, ", "), ": ", Quoted(value.dump())));
}

absl::StatusOr<LabelledItem> ParseItem(const json& line, const ModelSpec& spec,
                                       const std::string& where) {
  const std::string key = LabelKey(spec.task);
  if (!line.is_object() || line.size() != 2 || !line.contains("text") || !line.contains(key) ||
      !line["text"].is_string()) {
    return Wrong(where, absl::StrCat("expected {\"text\": \"...\", \"", key,
                                     "\": ...}: ", Quoted(line.dump())));
  }
  LabelledItem item{.text = line["text"].get<std::string>()};
  const json& value = line[key];
  if (spec.task == ModelTask::kClassify) {
    ASSIGN_OR_RETURN(item.label, ParseLabel(value, spec, where));
  } else if (spec.task == ModelTask::kEmbed) {
    if (!value.is_string())
      return Wrong(where, "\"other\" must be a text: " + Quoted(value.dump()));
    item.other = value.get<std::string>();
  } else {
    const bool texts = value.is_array() && !value.empty() &&
                       std::all_of(value.begin(), value.end(),
                                   [](const json& reference) { return reference.is_string(); });
    if (!texts) {
      return Wrong(where,
                   "\"references\" must be a list of at least one text: " + Quoted(value.dump()));
    }
    item.references = value.get<std::vector<std::string>>();
  }
  return item;
}

class TaskMeter {
 public:
  static absl::StatusOr<TaskMeter> Create(const Model& model, const TaskRun& run) {
    const bool decoder = model.spec().task == ModelTask::kGenerate;
    const int context = std::min(model.spec().max_context, kMaxPrompt + kAnswerTokens);
    const int rows = decoder ? std::min(context, kPrefillRows) : context;
    ASSIGN_OR_RETURN(
        ModelPass pass,
        ModelPass::Create(
            model, {.context = context, .rows = rows, .out_rows = 1, .kv_format = run.kv_format},
            run.pool));
    return TaskMeter(run.tokenizer, std::move(pass), context);
  }

  // Pooled or logits of an encoder.
  absl::StatusOr<std::vector<float>> Encode(const std::string& text) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer_.Encode(text, true, false));
    RETURN_IF_ERROR(CheckLength(ids.size(), 0));
    const ModelPass::Span span{0, 0, ids};
    ASSIGN_OR_RETURN(const std::span<const float> out, pass_.Forward(std::span(&span, 1)));
    return std::vector<float>(out.begin(), out.end());
  }

  // The greedy continuation.
  absl::StatusOr<std::string> Answer(const std::string& text) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> prompt, tokenizer_.Encode(text, true, true));
    RETURN_IF_ERROR(CheckLength(prompt.size(), 1));
    const std::span<const int32_t> all(prompt);
    for (size_t start = 0; start + 1 < all.size(); start += kPrefillRows) {
      const size_t rows = std::min<size_t>(kPrefillRows, all.size() - 1 - start);
      const ModelPass::Span span{0, static_cast<int>(start), all.subspan(start, rows)};
      RETURN_IF_ERROR(pass_.Forward(std::span(&span, 1), /*logits=*/false).status());
    }
    std::vector<int32_t> answer;
    const auto ends = tokenizer_.end_tokens();
    int32_t token = prompt.back();
    auto position = static_cast<int>(prompt.size()) - 1;
    while (static_cast<int>(answer.size()) < kAnswerTokens && position < context_) {
      const ModelPass::Span span{0, position++, std::span(&token, 1)};
      ASSIGN_OR_RETURN(const std::span<const float> logits, pass_.Forward(std::span(&span, 1)));
      const auto next =
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      if (std::find(ends.begin(), ends.end(), next) != ends.end()) break;
      answer.push_back(next);
      token = next;
    }
    return tokenizer_.Decode(answer, /*skip_special=*/true);
  }

 private:
  TaskMeter(const Tokenizer& tokenizer, ModelPass pass, int context)
      : tokenizer_(tokenizer), pass_(std::move(pass)), context_(context) {}

  absl::Status CheckLength(size_t tokens, size_t more) const {
    if (tokens > 0 && tokens + more <= static_cast<size_t>(context_)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("expected 1 to ", context_ - static_cast<int>(more), " tokens, got ", tokens));
  }

  const Tokenizer& tokenizer_;
  ModelPass pass_;
  const int context_;
};

double Cosine(std::span<const float> a, std::span<const float> b) {
  double product = 0, squares_a = 0, squares_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    product += double{a[i]} * b[i];
    squares_a += double{a[i]} * a[i];
    squares_b += double{b[i]} * b[i];
  }
  return product / std::sqrt(std::max(squares_a * squares_b, 1e-300));
}

// What the model says to every item.
struct Said {
  std::vector<int32_t> truth, labels;
  std::vector<ScoredText> answers;
  double cosines = 0;
};

absl::Status Ask(TaskMeter& meter, ModelTask task, const LabelledItem& item, Said& said) {
  if (task == ModelTask::kGenerate) {
    ASSIGN_OR_RETURN(std::string answer, meter.Answer(item.text));
    said.answers.push_back({std::move(answer), item.references});
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<float> values, meter.Encode(item.text));
  if (task == ModelTask::kClassify) {
    said.truth.push_back(item.label);
    said.labels.push_back(
        static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin()));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const std::vector<float> other, meter.Encode(item.other));
  said.cosines += Cosine(values, other);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LabelledSet> ReadLabelledSet(std::string_view bytes, const std::string& origin,
                                            const ModelSpec& spec) {
  LabelledSet set{.hash = Sha256Hex(bytes)};
  int number = 0;
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(bytes.data(), bytes.size()), '\n')) {
    ++number;
    if (line.find_first_not_of(" \t\r") == absl::string_view::npos) continue;
    const std::string where = absl::StrCat(origin, ":", number);
    const absl::StatusOr<json> value =
        ParseBoundedJson(std::string_view(line.data(), line.size()), where);
    if (!value.ok()) return absl::InvalidArgumentError(value.status().message());
    ASSIGN_OR_RETURN(LabelledItem item, ParseItem(*value, spec, where));
    if (set.items.size() == kMaxItems) {
      return Wrong(where, absl::StrCat("at most ", kMaxItems, " labelled items"));
    }
    set.items.push_back(std::move(item));
  }
  if (set.items.empty()) return Wrong(origin, "no labelled items");
  set.name = absl::StrCat(origin, ", ", set.items.size(), " items");
  return set;
}

absl::StatusOr<std::vector<TaskFigure>> MeasureTask(const Model& model, const LabelledSet& set,
                                                    const TaskRun& run) {
  const ModelTask task = model.spec().task;
  ASSIGN_OR_RETURN(TaskMeter meter, TaskMeter::Create(model, run));
  Said said;
  for (size_t i = 0; i < set.items.size(); ++i) {
    RETURN_IF_ERROR(
        Annotate(Ask(meter, task, set.items[i], said), absl::StrCat("labelled item ", i + 1)));
    if (run.progress) {
      RETURN_IF_ERROR(
          run.progress(static_cast<double>(i + 1) / static_cast<double>(set.items.size())));
    }
  }
  if (task == ModelTask::kEmbed) {
    return std::vector<TaskFigure>{
        {"cosine", said.cosines / static_cast<double>(set.items.size())}};
  }
  if (task == ModelTask::kClassify) {
    ASSIGN_OR_RETURN(const double accuracy, Accuracy(said.truth, said.labels));
    ASSIGN_OR_RETURN(const F1Scores f1, F1(said.truth, said.labels));
    return std::vector<TaskFigure>{
        {"accuracy", accuracy}, {"f1_macro", f1.macro}, {"f1_micro", f1.micro}};
  }
  ASSIGN_OR_RETURN(const double bleu, Bleu(said.answers));
  ASSIGN_OR_RETURN(const double chrf, Chrf(said.answers));
  return std::vector<TaskFigure>{{"bleu", bleu}, {"chrf", chrf}};
}

}  // namespace assay
