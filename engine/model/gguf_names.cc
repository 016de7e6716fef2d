#include "engine/model/gguf_names.h"

#include <algorithm>
#include <optional>
#include <span>

namespace assay {
namespace {

struct NamePair {
  std::string_view gguf, canonical;
};

struct Naming {
  std::string_view layer_prefix;  // canonical; GGUF has "blk."
  std::span<const NamePair> global, layer;
};

constexpr NamePair kDecoderGlobal[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};
constexpr NamePair kDecoderLayer[] = {
    {"attn_norm", "input_layernorm"},    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},      {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"}, {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"}, {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},       {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
};
constexpr NamePair kBertGlobal[] = {
    {"token_embd", "embeddings.word_embeddings"},
    {"position_embd", "embeddings.position_embeddings"},
    {"token_types", "embeddings.token_type_embeddings"},
    {"token_embd_norm", "embeddings.LayerNorm"},
};
constexpr NamePair kBertLayer[] = {
    {"attn_q", "attention.self.query"},
    {"attn_k", "attention.self.key"},
    {"attn_v", "attention.self.value"},
    {"attn_output", "attention.output.dense"},
    {"attn_output_norm", "attention.output.LayerNorm"},
    {"ffn_up", "intermediate.dense"},
    {"ffn_down", "output.dense"},
    {"layer_output_norm", "output.LayerNorm"},
};
constexpr Naming kDecoder = {"model.layers.", kDecoderGlobal, kDecoderLayer};
constexpr Naming kBert = {"encoder.layer.", kBertGlobal, kBertLayer};

const Naming* FindNaming(std::string_view architecture) {
  if (architecture == "llama" || architecture == "qwen2" || architecture == "qwen3")
    return &kDecoder;
  return architecture == "bert" ? &kBert : nullptr;
}

std::optional<std::string_view> Lookup(std::span<const NamePair> pairs, std::string_view gguf) {
  const auto found = std::ranges::find(pairs, gguf, &NamePair::gguf);
  if (found == pairs.end()) return std::nullopt;
  return found->canonical;
}

// "blk.12.attn_q.weight" in its parts.
struct LayerName {
  std::string_view layer, module, kind;  // "12", "attn_q", ".weight"
};

std::optional<LayerName> SplitLayerName(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  const size_t layer_end = name.find('.'), module_end = name.rfind('.');
  if (layer_end == std::string_view::npos || module_end <= layer_end) return std::nullopt;
  const LayerName parts = {name.substr(0, layer_end),
                           name.substr(layer_end + 1, module_end - layer_end - 1),
                           name.substr(module_end)};
  const bool number = !parts.layer.empty() &&
                      std::ranges::all_of(parts.layer, [](char c) { return c >= '0' && c <= '9'; });
  return number ? std::optional(parts) : std::nullopt;
}

}  // namespace

std::string CanonicalTensorName(std::string_view architecture, std::string_view gguf_name) {
  const Naming* naming = FindNaming(architecture);
  if (naming == nullptr) return std::string(gguf_name);
  if (const auto parts = SplitLayerName(gguf_name)) {
    const auto module = Lookup(naming->layer, parts->module);
    if (!module) return std::string(gguf_name);
    return std::string(naming->layer_prefix)
        .append(parts->layer)
        .append(".")
        .append(*module)
        .append(parts->kind);
  }
  const size_t dot = gguf_name.rfind('.');
  if (dot == std::string_view::npos) return std::string(gguf_name);
  const auto module = Lookup(naming->global, gguf_name.substr(0, dot));
  return module ? std::string(*module).append(gguf_name.substr(dot)) : std::string(gguf_name);
}

RowPermutation FindRowPermutation(std::string_view architecture, std::string_view gguf_name) {
  if (architecture != "llama") return RowPermutation::kNone;
  const auto parts = SplitLayerName(gguf_name);
  if (!parts) return RowPermutation::kNone;
  if (parts->module == "attn_q") return RowPermutation::kQueryHeads;
  return parts->module == "attn_k" ? RowPermutation::kKeyValueHeads : RowPermutation::kNone;
}

}  // namespace assay
