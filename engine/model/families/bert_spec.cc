#include "engine/model/families/bert_spec.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model/config_reader.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/ops.h"

namespace assay {
namespace {

using nlohmann::json;

constexpr EncoderNames kBertNames = {.layer = "encoder.layer.",
                                     .query = "attention.self.query",
                                     .key = "attention.self.key",
                                     .value = "attention.self.value",
                                     .qkv = "attention.self.qkv",
                                     .attention_output = "attention.output.dense",
                                     .attention_norm = "attention.output.LayerNorm",
                                     .intermediate = "intermediate.dense",
                                     .output = "output.dense",
                                     .output_norm = "output.LayerNorm",
                                     .head_dense = "pooler.dense",
                                     .head_out = "classifier",
                                     .head_dense_has_prefix = true,
                                     .head_activation = "tanh"};
constexpr EncoderNames RobertaNames() {
  EncoderNames names = kBertNames;
  names.head_dense = "classifier.dense";
  names.head_out = "classifier.out_proj";
  names.head_dense_has_prefix = false;
  return names;
}
constexpr EncoderNames kRobertaNames = RobertaNames();
constexpr EncoderNames kDistilBertNames = {.layer = "transformer.layer.",
                                           .query = "attention.q_lin",
                                           .key = "attention.k_lin",
                                           .value = "attention.v_lin",
                                           .qkv = "attention.qkv_lin",
                                           .attention_output = "attention.out_lin",
                                           .attention_norm = "sa_layer_norm",
                                           .intermediate = "ffn.lin1",
                                           .output = "ffn.lin2",
                                           .output_norm = "output_layer_norm",
                                           .head_dense = "pre_classifier",
                                           .head_out = "classifier",
                                           .head_activation = "relu"};

struct Architecture {
  std::string_view model_type;
  const EncoderNames* names;
  std::string_view prefix;   // of the encoder inside a model with a head
  bool counts_from_padding;  // positions start at pad_token_id + 1
  std::string_view layers, hidden, heads, ffn, activation;  // config keys
};
constexpr Architecture kArchitectures[] = {
    {"bert", &kBertNames, "bert.", false, "num_hidden_layers", "hidden_size", "num_attention_heads",
     "intermediate_size", "hidden_act"},
    {"roberta", &kRobertaNames, "roberta.", true, "num_hidden_layers", "hidden_size",
     "num_attention_heads", "intermediate_size", "hidden_act"},
    {"xlm-roberta", &kRobertaNames, "roberta.", true, "num_hidden_layers", "hidden_size",
     "num_attention_heads", "intermediate_size", "hidden_act"},
    {"distilbert", &kDistilBertNames, "distilbert.", false, "n_layers", "dim", "n_heads",
     "hidden_dim", "activation"},
};
constexpr int kMaxLayers = 1024;
constexpr int kMaxLabels = 1 << 16;

const Architecture* ArchitectureOf(std::string_view model_type) {
  const auto found =
      std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                   [&](const Architecture& a) { return a.model_type == model_type; });
  return found == std::end(kArchitectures) ? nullptr : found;
}

absl::Status ParseSizes(const ConfigReader& config, const Architecture& a, ModelSpec& spec) {
  ASSIGN_OR_RETURN(spec.layers, config.Size(a.layers));
  ASSIGN_OR_RETURN(spec.hidden, config.Size(a.hidden));
  ASSIGN_OR_RETURN(spec.heads, config.Size(a.heads));
  ASSIGN_OR_RETURN(spec.ffn, config.Size(a.ffn));
  ASSIGN_OR_RETURN(spec.vocab, config.Size("vocab_size"));
  ASSIGN_OR_RETURN(spec.max_context, config.Size("max_position_embeddings"));
  if (a.counts_from_padding) {
    // transformers' default is 1; a padding id of 0 is no Size().
    const json* padding = config.Find("pad_token_id");
    const bool zero = padding != nullptr && *padding == json(0);
    ASSIGN_OR_RETURN(const int id,
                     zero ? absl::StatusOr<int>(0) : config.SizeOr("pad_token_id", 1));
    spec.position_offset = id + 1;
    spec.max_context -= spec.position_offset;
  }
  if (spec.layers > kMaxLayers || spec.max_context < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("encoder sizes out of range: layers=", spec.layers, " at most ", kMaxLayers,
                     ", usable positions=", spec.max_context, " at least 1"));
  }
  if (spec.hidden % spec.heads != 0 || spec.hidden / spec.heads > kMaxHeadDim) {
    return absl::InvalidArgumentError(
        absl::StrCat("hidden size must be a multiple of the heads, at most ", kMaxHeadDim,
                     " each: hidden=", spec.hidden, " heads=", spec.heads));
  }
  spec.kv_heads = spec.heads;
  spec.head_dim = spec.hidden / spec.heads;
  return absl::OkStatus();
}

absl::Status ParseParts(const ConfigReader& config, const Architecture& a, ModelSpec& spec) {
  ASSIGN_OR_RETURN(const double eps, config.RealOr("layer_norm_eps", 1e-12));
  spec.norm_eps = static_cast<float>(eps);
  if (a.names != &kDistilBertNames) {  // which has no segments
    ASSIGN_OR_RETURN(spec.type_vocab, config.SizeOr("type_vocab_size", 2));
  }
  ASSIGN_OR_RETURN(spec.activation, config.TextOr(a.activation, "gelu"));
  if (!FindActivation(spec.activation)) {
    return absl::UnimplementedError(
        absl::StrCat("activation is not supported: ", std::string(a.activation), "=",
                     spec.activation.substr(0, 80)));
  }
  ASSIGN_OR_RETURN(const std::string positions,
                   config.TextOr("position_embedding_type", "absolute"));
  if (positions != "absolute") {
    return absl::UnimplementedError(absl::StrCat(
        "the bert family has absolute positions only: position_embedding_type=", positions));
  }
  return absl::OkStatus();
}

absl::Status ParsePrefix(const Checkpoint& checkpoint, const Architecture& a, ModelSpec& spec) {
  constexpr char kWords[] = "embeddings.word_embeddings.weight";
  for (const std::string& prefix : {std::string(a.prefix), std::string()}) {
    if (!checkpoint.Find(prefix + kWords).ok()) continue;
    spec.tensor_prefix = prefix;
    return absl::OkStatus();
  }
  return absl::NotFoundError(
      absl::StrCat("no tensor ", kWords, ", with or without ", std::string(a.prefix)));
}

// One pooling out of sentence-transformers' 1_Pooling/config.json: flags, or a name.
absl::Status ParsePooling(const ConfigReader& pooling, ModelSpec& spec) {
  ASSIGN_OR_RETURN(std::string mode, pooling.TextOr("pooling_mode", ""));
  constexpr struct {
    const char *key, *mode;
  } kFlags[] = {{"pooling_mode_mean_tokens", "mean"},
                {"pooling_mode_cls_token", "cls"},
                {"pooling_mode_max_tokens", "max"},
                {"pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len"},
                {"pooling_mode_weightedmean_tokens", "weightedmean"},
                {"pooling_mode_lasttoken", "lasttoken"}};
  for (const auto& [key, name] : kFlags) {
    ASSIGN_OR_RETURN(const bool set, pooling.BoolOr(key, false));
    if (set) mode += mode.empty() ? name : absl::StrCat("+", name);
  }
  if (mode != "mean" && mode != "cls" && !mode.empty()) {
    return absl::UnimplementedError(
        absl::StrCat("pooling is not supported: mode=", mode.substr(0, 80), " supported=mean,cls"));
  }
  spec.pooling = mode == "cls" ? Pooling::kCls : Pooling::kMean;
  return absl::OkStatus();
}

absl::Status ParseEmbedding(const ConfigReader& config, ModelSpec& spec) {
  spec.task = ModelTask::kEmbed;
  const json* described = config.Find("sentence_transformers");
  if (described == nullptr) return absl::OkStatus();  // mean, not normalized
  const ConfigReader sentence(*described, "sentence_transformers.");
  if (const json* modules = sentence.Find("modules"); modules != nullptr && modules->is_array()) {
    for (const json& module : *modules) {
      if (module == "Transformer" || module == "Pooling" || module == "Normalize") continue;
      return absl::UnimplementedError(
          absl::StrCat("sentence-transformers module is not supported: ",
                       module.dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 80)));
    }
  }
  if (const json* pooling = sentence.Find("pooling"); pooling != nullptr) {
    RETURN_IF_ERROR(ParsePooling(ConfigReader(*pooling, "sentence_transformers.pooling."), spec));
  }
  ASSIGN_OR_RETURN(spec.normalize, sentence.BoolOr("normalize", false));
  ASSIGN_OR_RETURN(const int longest, sentence.SizeOr("max_seq_length", spec.max_context));
  spec.max_context = std::min(spec.max_context, longest);
  return absl::OkStatus();
}

absl::Status ParseClassifier(const Checkpoint& checkpoint, const ConfigReader& config,
                             ModelSpec& spec) {
  spec.task = ModelTask::kClassify;
  const std::string name = absl::StrCat(std::string(NamesOf(spec).head_out), ".weight");
  ASSIGN_OR_RETURN(const CheckpointTensor* out, checkpoint.Find(name));
  if (out->shape.rank != 2 || out->shape[0] > kMaxLabels || out->shape[1] != spec.hidden) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, " must be [labels, hidden]: shape=", ToString(out->shape),
                     " hidden=", spec.hidden, " labels at most ", kMaxLabels));
  }
  spec.num_labels = static_cast<int>(out->shape[0]);
  const json* labels = config.Find("id2label");
  for (int i = 0; i < spec.num_labels; ++i) {
    std::string label = absl::StrCat("LABEL_", i);
    if (labels != nullptr && labels->is_object()) {
      const auto found = labels->find(absl::StrCat(i));
      if (found != labels->end() && found->is_string()) label = found->get<std::string>();
    }
    spec.labels.push_back(std::move(label));
  }
  return absl::OkStatus();
}

absl::Status ParseTask(const Checkpoint& checkpoint, const ConfigReader& config, ModelSpec& spec) {
  const json* architectures = config.Find("architectures");
  std::string head;
  if (architectures != nullptr && architectures->is_array() && !architectures->empty() &&
      architectures->front().is_string()) {
    head = architectures->front().get<std::string>();
  }
  if (absl::EndsWith(head, "ForSequenceClassification")) {
    return ParseClassifier(checkpoint, config, spec);
  }
  for (const char* other : {"ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice",
                            "ForNextSentencePrediction"}) {
    if (absl::EndsWith(head, other)) {
      return absl::UnimplementedError(
          absl::StrCat("head is not supported: architectures=", head.substr(0, 80),
                       " supported=an encoder or ForSequenceClassification"));
    }
  }
  return ParseEmbedding(config, spec);
}

LinearSlot Slot(const std::string& prefix, std::string_view name,
                std::initializer_list<std::string_view> parts, Shape shape) {
  LinearSlot slot;
  slot.name = absl::StrCat(prefix, std::string(name));
  for (const std::string_view part : parts) {
    slot.weights.push_back(absl::StrCat(prefix, std::string(part), ".weight"));
    slot.biases.push_back(absl::StrCat(prefix, std::string(part), ".bias"));
  }
  slot.shape = shape;
  return slot;
}

}  // namespace

const EncoderNames& NamesOf(const ModelSpec& spec) {
  return *ArchitectureOf(spec.architecture)->names;
}

std::string EncoderLayerPrefix(const ModelSpec& spec, int layer) {
  return absl::StrCat(spec.tensor_prefix, std::string(NamesOf(spec).layer), layer, ".");
}

bool IsBert(const Checkpoint& checkpoint) {
  const json* type = ConfigReader(checkpoint.config()).Find("model_type");
  return type != nullptr && type->is_string() &&
         ArchitectureOf(type->get_ref<const std::string&>()) != nullptr;
}

absl::StatusOr<ModelSpec> ParseBert(const Checkpoint& checkpoint) {
  const ConfigReader config(checkpoint.config());
  ModelSpec spec;
  spec.family = "bert";
  ASSIGN_OR_RETURN(spec.architecture, config.TextOr("model_type", "bert"));
  const Architecture* architecture = ArchitectureOf(spec.architecture);
  if (architecture == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("not of the bert family: model_type=", spec.architecture.substr(0, 80)));
  }
  RETURN_IF_ERROR(ParseSizes(config, *architecture, spec));
  RETURN_IF_ERROR(ParseParts(config, *architecture, spec));
  RETURN_IF_ERROR(ParsePrefix(checkpoint, *architecture, spec));
  RETURN_IF_ERROR(ParseTask(checkpoint, config, spec));
  return spec;
}

std::vector<LinearSlot> BertSlots(const ModelSpec& spec) {
  const EncoderNames& names = NamesOf(spec);
  const int64_t hidden = spec.hidden, ffn = spec.ffn;
  std::vector<LinearSlot> slots(1);
  slots[0].name = spec.tensor_prefix + "embeddings.word_embeddings";
  slots[0].weights = {slots[0].name + ".weight"};
  slots[0].shape = {spec.vocab, hidden};
  slots[0].kind = LinearSlot::Kind::kEmbedding;
  for (int layer = 0; layer < spec.layers; ++layer) {
    const std::string prefix = EncoderLayerPrefix(spec, layer);
    const size_t first = slots.size();
    slots.push_back(
        Slot(prefix, names.qkv, {names.query, names.key, names.value}, {3 * hidden, hidden}));
    slots.push_back(
        Slot(prefix, names.attention_output, {names.attention_output}, {hidden, hidden}));
    slots.push_back(Slot(prefix, names.intermediate, {names.intermediate}, {ffn, hidden}));
    slots.push_back(Slot(prefix, names.output, {names.output}, {hidden, ffn}));
    for (size_t i = first; i < slots.size(); ++i) slots[i].layer = layer;
  }
  return slots;
}

std::vector<LinearSlot> BertHeadSlots(const ModelSpec& spec) {
  if (spec.task != ModelTask::kClassify) return {};
  const EncoderNames& names = NamesOf(spec);
  const std::string prefix = names.head_dense_has_prefix ? spec.tensor_prefix : "";
  return {Slot(prefix, names.head_dense, {names.head_dense}, {spec.hidden, spec.hidden}),
          Slot("", names.head_out, {names.head_out}, {spec.num_labels, spec.hidden})};
}

std::vector<FoldGroup> BertFolds(const ModelSpec& spec) {
  // Post-norm: what a norm puts out also goes past the next linear, so only values can be rescaled;
  // gelu stands between the two linears of the MLP.
  const EncoderNames& names = NamesOf(spec);
  std::vector<FoldGroup> folds;
  for (int layer = 0; layer < spec.layers; ++layer) {
    const std::string prefix = EncoderLayerPrefix(spec, layer);
    const std::string value = absl::StrCat(prefix, std::string(names.value));
    const std::string output = absl::StrCat(prefix, std::string(names.attention_output));
    folds.push_back({.kind = FoldGroup::Kind::kValueOutput,
                     .slot = output,
                     .producers = {value + ".weight", value + ".bias"},
                     .consumers = {output + ".weight"},
                     .channels = spec.hidden});
  }
  return folds;
}

}  // namespace assay
