// What a model looks like to clients of the Open Inference Protocol: tensors, ModelMetadata,
// ModelConfig, repository states. Pure.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/lifecycle/registry.h"
#include "proto/open_inference/grpc_service.pb.h"

namespace assay {

inline constexpr std::string_view kTextInput = "text_input";
inline constexpr std::string_view kTextOutput = "text_output";
inline constexpr std::string_view kInputIds = "input_ids";
inline constexpr std::string_view kAttentionMask = "attention_mask";
inline constexpr std::string_view kEmbedding = "embedding";
inline constexpr std::string_view kLogits = "logits";
inline constexpr std::string_view kLabel = "label";

struct TensorDescription {
  std::string_view name;
  std::string_view datatype;  // "BYTES", "INT64", "FP32"
  std::vector<int64_t> dims;  // without the batch dimension; -1 = any
  bool optional = false;
};
std::vector<TensorDescription> DescribeInputs(const ModelSpec& spec, bool has_tokenizer);
std::vector<TensorDescription> DescribeOutputs(const ModelSpec& spec);

inference::ModelMetadataResponse DescribeMetadata(const Servable& servable,
                                                  std::span<const VersionInfo> versions);
// `max_batch`: rows of one request; `max_queue`: of the engine.
inference::ModelConfig DescribeConfig(const Servable& servable, int max_queue);

// Facts about the quantization, for ModelMetadata.properties and ModelConfig.parameters.
std::vector<std::pair<std::string, std::string>> DescribeQuantization(const Servable& servable);

// SERVING = READY, on its way = LOADING, DRAINING = UNLOADING, else UNAVAILABLE.
std::string_view RepositoryState(VersionState state);

std::string_view Name(ModelTask task);  // "generate", "embed", "classify"

// Label of the largest logit; its index when the model has no labels; empty for embeddings.
std::string LabelOf(const ModelSpec& spec, std::span<const float> logits);

}  // namespace assay
