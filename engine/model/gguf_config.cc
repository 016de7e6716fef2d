#include "engine/model/gguf_config.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint_text.h"

namespace assay {
namespace {

using nlohmann::json;

enum class Kind { kCount, kReal, kText };

struct KeyPair {
  std::string_view gguf, config;
  Kind kind;
};

// With the architecture's prefix.
constexpr KeyPair kModelKeys[] = {
    {"block_count", "num_hidden_layers", Kind::kCount},
    {"context_length", "max_position_embeddings", Kind::kCount},
    {"embedding_length", "hidden_size", Kind::kCount},
    {"feed_forward_length", "intermediate_size", Kind::kCount},
    {"attention.head_count", "num_attention_heads", Kind::kCount},
    {"attention.head_count_kv", "num_key_value_heads", Kind::kCount},
    {"attention.key_length", "head_dim", Kind::kCount},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps", Kind::kReal},
    {"attention.layer_norm_epsilon", "layer_norm_eps", Kind::kReal},
    {"attention.sliding_window", "sliding_window", Kind::kCount},
    {"rope.freq_base", "rope_theta", Kind::kReal},
    {"vocab_size", "vocab_size", Kind::kCount},
    {"expert_count", "num_local_experts", Kind::kCount},
    {"expert_used_count", "num_experts_per_tok", Kind::kCount},
};
constexpr KeyPair kGlobalKeys[] = {
    {"general.name", "_name_or_path", Kind::kText},
    {"tokenizer.ggml.bos_token_id", "bos_token_id", Kind::kCount},
    {"tokenizer.ggml.eos_token_id", "eos_token_id", Kind::kCount},
    {"tokenizer.ggml.padding_token_id", "pad_token_id", Kind::kCount},
    {"tokenizer.ggml.token_type_count", "type_vocab_size", Kind::kCount},
};
constexpr KeyPair kRopeScalingKeys[] = {
    {"rope.scaling.type", "rope_type", Kind::kText},
    {"rope.scaling.factor", "factor", Kind::kReal},
    {"rope.scaling.original_context_length", "original_max_position_embeddings", Kind::kCount},
    {"rope.scaling.attn_factor", "attention_factor", Kind::kReal},
    {"rope.scaling.yarn_beta_fast", "beta_fast", Kind::kReal},
    {"rope.scaling.yarn_beta_slow", "beta_slow", Kind::kReal},
};

bool HasKind(const json& value, Kind kind) {
  switch (kind) {
    case Kind::kCount:
      return value.is_number_unsigned() || (value.is_number_integer() && value.get<int64_t>() >= 0);
    case Kind::kReal:
      return value.is_number();
    case Kind::kText:
      return value.is_string();
  }
  return false;
}

// Copies what the file has of `keys`, each looked up as prefix + key.
template <size_t n>
absl::Status CopyKeys(const json& metadata, const std::string& prefix, const KeyPair (&keys)[n],
                      json& to) {
  for (const KeyPair& key : keys) {
    const std::string name = prefix + std::string(key.gguf);
    const auto found = metadata.find(name);
    if (found == metadata.end()) continue;
    const json* value = &*found;
    // Per-layer lists. Those that differ are kept: whoever reads them as a number says so.
    const bool uniform =
        value->is_array() && !value->empty() &&
        std::ranges::all_of(*value, [&](const json& v) { return v == value->front(); });
    if (uniform) value = &value->front();
    const bool list = value->is_array() && !value->empty() && key.kind == Kind::kCount;
    const bool fits =
        list ? std::ranges::all_of(*value, [&](const json& v) { return HasKind(v, key.kind); })
             : HasKind(*value, key.kind);
    if (!fits) {
      return absl::InvalidArgumentError(absl::StrCat(
          "metadata ", Quoted(name), " has the wrong type: type=", found->type_name()));
    }
    to[key.config] = *value;
  }
  return absl::OkStatus();
}

const GgufTensor* FindTensor(const GgufHeader& header, std::string_view name) {
  const auto found = std::ranges::find(header.tensors, name, &GgufTensor::name);
  return found == header.tensors.end() ? nullptr : &*found;
}

std::string_view ModelClass(std::string_view architecture) {
  if (architecture == "llama") return "LlamaForCausalLM";
  if (architecture == "qwen2") return "Qwen2ForCausalLM";
  if (architecture == "qwen3") return "Qwen3ForCausalLM";
  return architecture == "bert" ? "BertModel" : "";
}

absl::Status AddRope(const json& metadata, const std::string& prefix, json& config) {
  json scaling = json::object();
  RETURN_IF_ERROR(CopyKeys(metadata, prefix, kRopeScalingKeys, scaling));
  const auto old_factor = metadata.find(prefix + "rope.scale_linear");  // before rope.scaling.*
  if (scaling.empty() && old_factor != metadata.end() && old_factor->is_number()) {
    scaling["factor"] = *old_factor;
  }
  config.emplace("rope_theta", 10000.0);
  if (!scaling.contains("factor")) return absl::OkStatus();
  const std::string type = scaling.emplace("rope_type", "linear").first->get<std::string>();
  if (type == "none") return absl::OkStatus();
  // GGUF's factor multiplies YaRN's own magnitude correction, Hugging Face's replaces it.
  if (type == "yarn" && scaling.contains("attention_factor")) {
    const double own = 0.1 * std::log(scaling["factor"].get<double>()) + 1.0;
    scaling["attention_factor"] = scaling["attention_factor"].get<double>() * own;
  }
  config["rope_scaling"] = std::move(scaling);
  return absl::OkStatus();
}

bool IsCount(const json& config, std::string_view key) {
  const auto found = config.find(key);
  return found != config.end() && HasKind(*found, Kind::kCount) && found->get<uint64_t>() > 0;
}

// What transformers writes for a decoder and GGUF only implies.
absl::Status AddDecoderFacts(const GgufHeader& header, const std::string& prefix, json& config) {
  config["hidden_act"] = "silu";
  if (!config.contains("num_key_value_heads") && config.contains("num_attention_heads")) {
    config["num_key_value_heads"] = config["num_attention_heads"];
  }
  if (!config.contains("head_dim") && IsCount(config, "hidden_size") &&
      IsCount(config, "num_attention_heads")) {
    config["head_dim"] =
        config["hidden_size"].get<uint64_t>() / config["num_attention_heads"].get<uint64_t>();
  }
  const auto rotated = header.metadata.find(prefix + "rope.dimension_count");
  if (rotated != header.metadata.end() && HasKind(*rotated, Kind::kCount) &&
      IsCount(config, "head_dim") && *rotated != config["head_dim"]) {
    config["partial_rotary_factor"] = rotated->get<double>() / config["head_dim"].get<double>();
  }
  if (FindTensor(header, "token_embd.weight") != nullptr) {
    config["tie_word_embeddings"] = FindTensor(header, "output.weight") == nullptr;
  }
  config["attention_bias"] = FindTensor(header, "blk.0.attn_q.bias") != nullptr;
  config["mlp_bias"] = FindTensor(header, "blk.0.ffn_up.bias") != nullptr;
  return AddRope(header.metadata, prefix, config);
}

// `bert.pooling_type` (enum llama_pooling_type) as sentence-transformers says it.
void AddBertFacts(const GgufHeader& header, json& config) {
  config["hidden_act"] = "gelu";
  if (const GgufTensor* types = FindTensor(header, "token_types.weight");
      types != nullptr && types->dims.size() == 2) {
    config["type_vocab_size"] = types->dims[1];
  }
  const auto pooling = header.metadata.find("bert.pooling_type");
  if (pooling == header.metadata.end() || !HasKind(*pooling, Kind::kCount)) return;
  const auto type = pooling->get<uint64_t>();
  if (type != 1 && type != 2) return;
  config["sentence_transformers"] = {
      {"modules", json::array({"Transformer", "Pooling"})},
      {"pooling", {{"pooling_mode_mean_tokens", type == 1}, {"pooling_mode_cls_token", type == 2}}},
      {"normalize", false}};
}

}  // namespace

absl::StatusOr<json> GgufConfig(const GgufHeader& header) {
  const json& metadata = header.metadata;
  json config = json::object();
  const auto architecture = metadata.find("general.architecture");
  if (architecture == metadata.end() || !architecture->is_string()) {
    return absl::InvalidArgumentError("metadata 'general.architecture' is missing or not text");
  }
  const auto name = architecture->get<std::string>();
  const std::string prefix = name + ".";
  RETURN_IF_ERROR(CopyKeys(metadata, prefix, kModelKeys, config));
  RETURN_IF_ERROR(CopyKeys(metadata, "", kGlobalKeys, config));
  config["model_type"] = name;
  if (!ModelClass(name).empty()) config["architectures"] = json::array({ModelClass(name)});
  // The embedding has the last word, then the architecture's own count, then the tokenizer's list.
  const GgufTensor* embedding = FindTensor(header, "token_embd.weight");
  const auto tokens = metadata.find("tokenizer.ggml.tokens");
  if (embedding != nullptr && embedding->dims.size() == 2) {
    config["vocab_size"] = embedding->dims[1];
  } else if (!config.contains("vocab_size") && tokens != metadata.end() && tokens->is_array()) {
    config["vocab_size"] = tokens->size();
  }
  if (name == "bert") {
    AddBertFacts(header, config);
  } else if (!ModelClass(name).empty()) {
    RETURN_IF_ERROR(AddDecoderFacts(header, prefix, config));
  }
  return config;
}

}  // namespace assay
