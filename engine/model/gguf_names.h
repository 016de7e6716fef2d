// Tensor names of GGUF <-> those of Hugging Face, for the architectures that this build serves.
// Source: gguf-py/gguf/tensor_mapping.py of llama.cpp.
//
// Thread rule: pure functions.
#pragma once
#include <string>
#include <string_view>

namespace assay {

// "blk.0.attn_q.weight" of "llama" -> "model.layers.0.self_attn.q_proj.weight". A name that the
// architecture does not define (for instance "rope_freqs.weight"), and every name of another
// architecture, stays as it is.
std::string CanonicalTensorName(std::string_view architecture, std::string_view gguf_name);

// Which head count a tensor's rows were permuted with by the converter.
enum class RowPermutation { kNone, kQueryHeads, kKeyValueHeads };
RowPermutation FindRowPermutation(std::string_view architecture, std::string_view gguf_name);

}  // namespace assay
