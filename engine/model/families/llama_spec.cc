#include "engine/model/families/llama_spec.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/model/config_reader.h"
#include "engine/model/rope_scaling.h"
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/ops.h"

namespace assay {
namespace {

using nlohmann::json;

constexpr std::string_view kModelTypes[] = {"llama", "mistral", "qwen2", "qwen3"};
constexpr int kMaxLayers = 1024;      // the deepest published decoders have 126
constexpr int kMaxContext = 1 << 20;  // bounds the rotation tables
constexpr char kFirstLayer[] = "model.layers.0.";

absl::Status ParseSizes(const ConfigReader& config, ModelSpec& spec) {
  ASSIGN_OR_RETURN(spec.layers, config.Size("num_hidden_layers"));
  ASSIGN_OR_RETURN(spec.hidden, config.Size("hidden_size"));
  ASSIGN_OR_RETURN(spec.heads, config.Size("num_attention_heads"));
  ASSIGN_OR_RETURN(spec.kv_heads, config.SizeOr("num_key_value_heads", spec.heads));
  ASSIGN_OR_RETURN(spec.ffn, config.Size("intermediate_size"));
  ASSIGN_OR_RETURN(spec.vocab, config.Size("vocab_size"));
  ASSIGN_OR_RETURN(spec.max_context, config.Size("max_position_embeddings"));
  if (!config.Has("head_dim") && spec.hidden % spec.heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "hidden_size must be a multiple of num_attention_heads: hidden_size=", spec.hidden,
        " num_attention_heads=", spec.heads));
  }
  ASSIGN_OR_RETURN(spec.head_dim, config.SizeOr("head_dim", spec.hidden / spec.heads));
  if (spec.layers > kMaxLayers || spec.max_context > kMaxContext) {
    return absl::InvalidArgumentError(
        absl::StrCat("model is too large: num_hidden_layers=", spec.layers, " at most ", kMaxLayers,
                     ", max_position_embeddings=", spec.max_context, " at most ", kMaxContext));
  }
  if (spec.heads % spec.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_attention_heads must be a multiple of num_key_value_heads: heads=", spec.heads,
        " kv_heads=", spec.kv_heads));
  }
  if (spec.head_dim % 2 != 0 || spec.head_dim > kMaxHeadDim) {
    return absl::InvalidArgumentError(absl::StrCat("head_dim must be even and at most ",
                                                   kMaxHeadDim, ": head_dim=", spec.head_dim));
  }
  return absl::OkStatus();
}

// Parts of the architecture that a config can ask for and this family does not compute.
absl::Status RefuseOtherArchitectures(const ConfigReader& config) {
  ASSIGN_OR_RETURN(const std::string activation, config.TextOr("hidden_act", "silu"));
  if (FindActivation(activation) != Activation::kSilu) {
    return absl::UnimplementedError(
        absl::StrCat("the llama family has silu gates only: hidden_act=", activation));
  }
  ASSIGN_OR_RETURN(const double rotary, config.RealOr("partial_rotary_factor", 1));
  if (rotary != 1) {
    return absl::UnimplementedError(absl::StrCat(
        "the llama family rotates whole heads: partial_rotary_factor=", rotary, " expected=1"));
  }
  if (config.Has("num_local_experts") || config.Has("num_experts")) {
    return absl::UnimplementedError("mixture of experts is not supported: num_local_experts");
  }
  return absl::OkStatus();
}

// qwen2: the window applies from layer max_window_layers on, and only with use_sliding_window.
// Newer configs say it per layer in layer_types, which wins.
absl::Status ParseWindow(const ConfigReader& config, ModelSpec& spec) {
  const bool qwen = spec.architecture == "qwen2" || spec.architecture == "qwen3";
  ASSIGN_OR_RETURN(const bool use, config.BoolOr("use_sliding_window", !qwen));
  if (!use || !config.Has("sliding_window")) return absl::OkStatus();
  ASSIGN_OR_RETURN(spec.sliding_window, config.Size("sliding_window"));
  if (qwen && config.Has("max_window_layers")) {
    const json& first = *config.Find("max_window_layers");
    if (first != json(0)) {  // Size() starts at 1
      ASSIGN_OR_RETURN(spec.window_first_layer, config.Size("max_window_layers"));
    }
  }
  const json* types = config.Find("layer_types");
  if (types == nullptr) return absl::OkStatus();
  if (!types->is_array() || types->size() != static_cast<size_t>(spec.layers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("config key layer_types must have an entry per layer: layers=", spec.layers));
  }
  const auto first = std::find(types->begin(), types->end(), json("sliding_attention"));
  spec.window_first_layer = static_cast<int>(first - types->begin());
  for (auto it = types->begin(); it != types->end(); ++it) {
    const char* expected = it < first ? "full_attention" : "sliding_attention";
    if (*it == expected) continue;
    return absl::UnimplementedError(absl::StrCat(
        "layer_types must be full_attention, then sliding_attention: layer=", it - types->begin(),
        " type=", it->dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 80)));
  }
  return absl::OkStatus();
}

bool HasTensor(const Checkpoint& checkpoint, const std::string& name) {
  return checkpoint.Find(name).ok();
}

absl::Status ParseParts(const Checkpoint& checkpoint, const ConfigReader& config, ModelSpec& spec) {
  const std::string first = kFirstLayer;
  const bool qwen2 = spec.architecture == "qwen2";
  ASSIGN_OR_RETURN(const bool bias, config.BoolOr("attention_bias", qwen2));
  spec.qkv_bias = bias || qwen2 || HasTensor(checkpoint, first + "self_attn.q_proj.bias");
  spec.o_bias = HasTensor(checkpoint, first + "self_attn.o_proj.bias");
  spec.mlp_bias = HasTensor(checkpoint, first + "mlp.gate_proj.bias");
  spec.qk_norm = spec.architecture == "qwen3";
  ASSIGN_OR_RETURN(spec.tied_head,
                   config.BoolOr("tie_word_embeddings", !HasTensor(checkpoint, "lm_head.weight")));
  return absl::OkStatus();
}

// llama.cpp's converter stores llama3 scaling as a divisor per frequency.
absl::Status ApplyFrequencyFactors(const Checkpoint& checkpoint, ModelSpec& spec) {
  constexpr char kName[] = "rope_freqs.weight";
  const auto tensor = checkpoint.Find(kName);
  if (absl::IsNotFound(tensor.status())) return absl::OkStatus();
  const auto half = static_cast<int64_t>(spec.rope_inv_freq.size());
  if ((*tensor)->shape != Shape{half}) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", kName, " must hold a factor per frequency: shape=", ToString((*tensor)->shape),
        " expected=[", half, "]"));
  }
  ASSIGN_OR_RETURN(const Tensor factors, checkpoint.ReadAll(kName));
  for (int64_t i = 0; i < half; ++i) {
    const float factor = factors.data<float>()[i];
    if (!(factor > 0) || std::isinf(factor)) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", kName, " must be above 0: index=", i, " value=", factor));
    }
    spec.rope_inv_freq[i] /= factor;
  }
  return absl::OkStatus();
}

LinearSlot Slot(std::string prefix, std::string name, std::vector<std::string> parts, Shape shape) {
  LinearSlot slot;
  for (std::string& part : parts) slot.weights.push_back(prefix + part + ".weight");
  slot.name = std::move(prefix) + std::move(name);
  slot.shape = shape;
  return slot;
}
LinearSlot WithBias(LinearSlot slot, bool has_bias) {
  if (!has_bias) return slot;
  for (const std::string& weight : slot.weights) {
    slot.biases.push_back(weight.substr(0, weight.size() - 6) + "bias");  // "weight" -> "bias"
  }
  return slot;
}

}  // namespace

bool IsLlama(const Checkpoint& checkpoint) {
  const json* type = ConfigReader(checkpoint.config()).Find("model_type");
  return type != nullptr && type->is_string() &&
         std::find(std::begin(kModelTypes), std::end(kModelTypes),
                   type->get_ref<const std::string&>()) != std::end(kModelTypes);
}

absl::StatusOr<ModelSpec> ParseLlama(const Checkpoint& checkpoint) {
  const ConfigReader config(checkpoint.config());
  ModelSpec spec;
  spec.family = "llama";
  spec.task = ModelTask::kGenerate;
  ASSIGN_OR_RETURN(spec.architecture, config.TextOr("model_type", "llama"));
  RETURN_IF_ERROR(RefuseOtherArchitectures(config));
  RETURN_IF_ERROR(ParseSizes(config, spec));
  ASSIGN_OR_RETURN(const double eps, config.Real("rms_norm_eps"));
  spec.norm_eps = static_cast<float>(eps);
  ASSIGN_OR_RETURN(RopeFrequencies rope,
                   ReadRopeFrequencies(config, spec.head_dim, spec.max_context));
  spec.rope_inv_freq = std::move(rope.inv_freq);
  spec.rope_attention_scale = rope.attention_scale;
  spec.rope_theta = rope.theta;
  RETURN_IF_ERROR(ApplyFrequencyFactors(checkpoint, spec));
  RETURN_IF_ERROR(ParseWindow(config, spec));
  RETURN_IF_ERROR(ParseParts(checkpoint, config, spec));
  return spec;
}

std::string LlamaLayerPrefix(int layer) { return absl::StrCat("model.layers.", layer, "."); }

std::vector<LinearSlot> LlamaSlots(const ModelSpec& spec) {
  const int64_t hidden = spec.hidden, ffn = spec.ffn;
  const int64_t q = int64_t{spec.heads} * spec.head_dim,
                kv = int64_t{spec.kv_heads} * spec.head_dim;
  std::vector<LinearSlot> slots;
  slots.push_back(Slot("model.", "embed_tokens", {"embed_tokens"}, {spec.vocab, hidden}));
  slots.back().kind = LinearSlot::Kind::kEmbedding;
  for (int layer = 0; layer < spec.layers; ++layer) {
    const std::string attention = LlamaLayerPrefix(layer) + "self_attn.";
    const std::string mlp = LlamaLayerPrefix(layer) + "mlp.";
    const size_t first = slots.size();
    slots.push_back(
        WithBias(Slot(attention, "qkv_proj", {"q_proj", "k_proj", "v_proj"}, {q + 2 * kv, hidden}),
                 spec.qkv_bias));
    slots.push_back(WithBias(Slot(attention, "o_proj", {"o_proj"}, {hidden, q}), spec.o_bias));
    slots.push_back(WithBias(Slot(mlp, "gate_up_proj", {"gate_proj", "up_proj"}, {2 * ffn, hidden}),
                             spec.mlp_bias));
    slots.push_back(WithBias(Slot(mlp, "down_proj", {"down_proj"}, {hidden, ffn}), spec.mlp_bias));
    for (size_t i = first; i < slots.size(); ++i) slots[i].layer = layer;
  }
  if (!spec.tied_head) {
    slots.push_back(Slot("", "lm_head", {"lm_head"}, {spec.vocab, hidden}));
    slots.back().kind = LinearSlot::Kind::kHead;
  }
  return slots;
}

std::vector<FoldGroup> LlamaFolds(const ModelSpec& spec) {
  const int64_t hidden = spec.hidden, head_dim = spec.head_dim;
  std::vector<FoldGroup> folds;
  for (int layer = 0; layer < spec.layers; ++layer) {
    const std::string prefix = LlamaLayerPrefix(layer);
    const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
    folds.push_back({.kind = FoldGroup::Kind::kNormLinear,
                     .slot = attention + "qkv_proj",
                     .producers = {prefix + "input_layernorm.weight"},
                     .consumers = {attention + "q_proj.weight", attention + "k_proj.weight",
                                   attention + "v_proj.weight"},
                     .channels = hidden});
    if (!spec.qk_norm) {  // else a norm, shared by the heads, stands between
      folds.push_back({.kind = FoldGroup::Kind::kKeyQuery,
                       .slot = attention + "qkv_proj",
                       .producers = {attention + "k_proj.weight"},
                       .partners = {attention + "q_proj.weight"},
                       .channels = spec.kv_heads * head_dim,
                       .head_dim = head_dim,
                       .heads_per_channel = spec.heads / spec.kv_heads,
                       .rotary_pairs = true});
      if (spec.qkv_bias) {
        folds.back().producers.push_back(attention + "k_proj.bias");
        folds.back().partners.push_back(attention + "q_proj.bias");
      }
    }
    folds.push_back({.kind = FoldGroup::Kind::kValueOutput,
                     .slot = attention + "o_proj",
                     .producers = {attention + "v_proj.weight"},
                     .consumers = {attention + "o_proj.weight"},
                     .channels = spec.kv_heads * head_dim,
                     .head_dim = head_dim,
                     .heads_per_channel = spec.heads / spec.kv_heads});
    if (spec.qkv_bias) folds.back().producers.push_back(attention + "v_proj.bias");
    folds.push_back({.kind = FoldGroup::Kind::kNormLinear,
                     .slot = mlp + "gate_up_proj",
                     .producers = {prefix + "post_attention_layernorm.weight"},
                     .consumers = {mlp + "gate_proj.weight", mlp + "up_proj.weight"},
                     .channels = hidden});
    folds.push_back({.kind = FoldGroup::Kind::kUpDown,
                     .slot = mlp + "down_proj",
                     .producers = {mlp + "up_proj.weight"},
                     .consumers = {mlp + "down_proj.weight"},
                     .channels = spec.ffn});
    if (spec.mlp_bias) folds.back().producers.push_back(mlp + "up_proj.bias");
  }
  // A tied head shares its weight with the embedding table, which the final norm does not feed.
  if (!spec.tied_head) {
    folds.push_back({.kind = FoldGroup::Kind::kNormLinear,
                     .slot = "lm_head",
                     .producers = {"model.norm.weight"},
                     .consumers = {"lm_head.weight"},
                     .channels = hidden});
  }
  return folds;
}

}  // namespace assay
