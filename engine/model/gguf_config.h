// GGUF metadata in the vocabulary of Hugging Face's config.json.
// Source: gguf-py/gguf/constants.py (keys) and convert_hf_to_gguf.py (what is written into them) of
// llama.cpp.
//
// Thread rule: pure function.
#pragma once
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "engine/model/gguf_header.h"

namespace assay {

// Known architectures (llama, qwen2, qwen3, bert) get "architectures"; others only what their keys
// say. Keys that the file lacks are left out, but for those with a default in the format:
// num_key_value_heads, rope_theta (10000). A per-layer list whose elements are all equal becomes
// one number. InvalidArgument: a key whose value has the wrong type.
absl::StatusOr<nlohmann::json> GgufConfig(const GgufHeader& header);

}  // namespace assay
