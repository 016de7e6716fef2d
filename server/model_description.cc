#include "server/model_description.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace assay {
namespace {

constexpr int kMaxBatch = 256;  // rows of one request, as InferJob accepts

inference::DataType ConfigType(std::string_view datatype) {
  if (datatype == "BYTES") return inference::TYPE_STRING;
  if (datatype == "INT64") return inference::TYPE_INT64;
  return inference::TYPE_FP32;
}

}  // namespace

std::string_view Name(ModelTask task) {
  switch (task) {
    case ModelTask::kGenerate:
      return "generate";
    case ModelTask::kEmbed:
      return "embed";
    case ModelTask::kClassify:
      return "classify";
  }
  return "";
}

std::vector<TensorDescription> DescribeInputs(const ModelSpec& spec, bool has_tokenizer) {
  if (spec.task == ModelTask::kGenerate) return {{kTextInput, "BYTES", {1}}};
  std::vector<TensorDescription> out;
  if (has_tokenizer) out.push_back({kTextInput, "BYTES", {1}, true});
  out.push_back({kInputIds, "INT64", {-1}, has_tokenizer});
  out.push_back({kAttentionMask, "INT64", {-1}, true});
  return out;
}

std::vector<TensorDescription> DescribeOutputs(const ModelSpec& spec) {
  switch (spec.task) {
    case ModelTask::kGenerate:
      return {{kTextOutput, "BYTES", {1}}};
    case ModelTask::kEmbed:
      return {{kEmbedding, "FP32", {spec.hidden}}};
    case ModelTask::kClassify:
      return {{kLogits, "FP32", {spec.num_labels}}, {kLabel, "BYTES", {1}}};
  }
  return {};
}

std::vector<std::pair<std::string, std::string>> DescribeQuantization(const Servable& servable) {
  const AdmissionReport& report = servable.report;
  const VerificationResult& v = report.verification;
  std::vector<std::pair<std::string, std::string>> out{
      {"assay.task", std::string(Name(servable.spec.task))},
      {"assay.architecture", servable.spec.architecture},
      {"assay.precision", ServedPrecision(report)},
      {"assay.scheme", report.decision.recipe.scheme},
      {"assay.policy_rule", report.decision.rule},
      {"assay.verdict", report.verdict},
      {"assay.weight_bytes", absl::StrCat(report.bytes)},
      {"assay.weight_bytes_f32", absl::StrCat(report.bytes_f32)},
      {"assay.fallback_fraction", absl::StrFormat("%.4f", report.fallback_fraction)},
      {"assay.source_sha256", report.source_hash},
      {"assay.artifact", report.artifact_hash},
      {"assay.max_context", absl::StrCat(servable.spec.max_context)},
  };
  switch (servable.spec.task) {
    case ModelTask::kGenerate:
      out.emplace_back("assay.mean_kl", absl::StrFormat("%.6g", v.mean_kl.mean));
      out.emplace_back("assay.top1_agreement", absl::StrFormat("%.6g", v.top1_agreement.mean));
      out.emplace_back("assay.perplexity_ratio", absl::StrFormat("%.6g", v.perplexity_ratio));
      break;
    case ModelTask::kEmbed:
      out.emplace_back("assay.cosine", absl::StrFormat("%.6g", v.cosine.mean));
      break;
    case ModelTask::kClassify:
      out.emplace_back("assay.label_agreement", absl::StrFormat("%.6g", v.label_agreement));
      break;
  }
  return out;
}

inference::ModelMetadataResponse DescribeMetadata(const Servable& servable,
                                                  std::span<const VersionInfo> versions) {
  inference::ModelMetadataResponse out;
  out.set_name(servable.name);
  for (const VersionInfo& version : versions) {
    if (version.name == servable.name && version.state == VersionState::kServing) {
      out.add_versions(absl::StrCat(version.version));
    }
  }
  out.set_platform(absl::StrCat("assay_", servable.spec.family));
  const auto fill = [](const TensorDescription& from,
                       inference::ModelMetadataResponse::TensorMetadata& to) {
    to.set_name(std::string(from.name));
    to.set_datatype(std::string(from.datatype));
    to.add_shape(-1);
    for (const int64_t dim : from.dims) to.add_shape(dim);
  };
  for (const auto& tensor : DescribeInputs(servable.spec, servable.tokenizer != nullptr)) {
    fill(tensor, *out.add_inputs());
  }
  for (const auto& tensor : DescribeOutputs(servable.spec)) fill(tensor, *out.add_outputs());
  for (const auto& [key, value] : DescribeQuantization(servable)) {
    (*out.mutable_properties())[key] = value;
  }
  return out;
}

inference::ModelConfig DescribeConfig(const Servable& servable, int max_queue) {
  inference::ModelConfig out;
  out.set_name(servable.name);
  out.set_platform(absl::StrCat("assay_", servable.spec.family));
  out.set_backend("assay");
  out.mutable_version_policy()->mutable_latest()->set_num_versions(1);
  out.set_max_batch_size(kMaxBatch);
  for (const auto& tensor : DescribeInputs(servable.spec, servable.tokenizer != nullptr)) {
    inference::ModelInput& input = *out.add_input();
    input.set_name(std::string(tensor.name));
    input.set_data_type(ConfigType(tensor.datatype));
    for (const int64_t dim : tensor.dims) input.add_dims(dim);
    input.set_optional(tensor.optional);
  }
  for (const auto& tensor : DescribeOutputs(servable.spec)) {
    inference::ModelOutput& output = *out.add_output();
    output.set_name(std::string(tensor.name));
    output.set_data_type(ConfigType(tensor.datatype));
    for (const int64_t dim : tensor.dims) output.add_dims(dim);
  }
  auto& queue = *out.mutable_dynamic_batching()->mutable_default_queue_policy();
  queue.set_allow_timeout_override(true);
  queue.set_max_queue_size(static_cast<uint32_t>(max_queue));
  out.mutable_model_transaction_policy()->set_decoupled(servable.spec.task == ModelTask::kGenerate);
  for (const auto& [key, value] : DescribeQuantization(servable)) {
    (*out.mutable_parameters())[key].set_string_value(value);
  }
  return out;
}

std::string_view RepositoryState(VersionState state) {
  switch (state) {
    case VersionState::kServing:
      return "READY";
    case VersionState::kQueued:
    case VersionState::kAdmitting:
    case VersionState::kWarming:
      return "LOADING";
    case VersionState::kDraining:
      return "UNLOADING";
    case VersionState::kRetired:
    case VersionState::kRejected:
    case VersionState::kFailed:
      return "UNAVAILABLE";
  }
  return "UNKNOWN";
}

std::string LabelOf(const ModelSpec& spec, std::span<const float> logits) {
  if (spec.task != ModelTask::kClassify || logits.empty()) return "";
  const size_t best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  return best < spec.labels.size() ? spec.labels[best] : absl::StrCat(best);
}

}  // namespace assay
