// Frequencies of rotary position embeddings, with the scalings that models ship with.
// Sources: Su et al. 2021 (RoPE); Chen et al. 2023 (linear); Peng et al. 2023 (YaRN); Llama 3.1's
// reference code (llama3). Conventions and defaults: transformers, modeling_rope_utils.py.
#pragma once
#include <vector>

#include "engine/model/config_reader.h"

namespace assay {

struct RopeFrequencies {
  std::vector<float> inv_freq;   // [head_dim / 2]
  float attention_scale = 1.0f;  // on cos and sin
  float theta = 10000.0f;
};

// Reads "rope_theta" and "rope_scaling" or, as transformers 5 writes them, "rope_parameters".
// InvalidArgument: a key of the wrong type or out of range; Unimplemented: a scaling that depends
// on the length of the request ("dynamic", "longrope") or is unknown.
absl::StatusOr<RopeFrequencies> ReadRopeFrequencies(const ConfigReader& config, int head_dim,
                                                    int max_context);

}  // namespace assay
