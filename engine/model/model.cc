#include "engine/model/model.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/thread_pool.h"
#include "engine/model/config_reader.h"
#include "engine/model/families/forward_parts.h"

namespace assay {
namespace {

// Rows of each part of a slot are not written down: they follow from the checkpoint.
absl::StatusOr<int64_t> PartRows(const Checkpoint& checkpoint, const std::string& name,
                                 const LinearSlot& slot) {
  ASSIGN_OR_RETURN(const CheckpointTensor* tensor, checkpoint.Find(name));
  if (tensor->shape.rank == 2 && tensor->shape[1] == slot.shape[1]) return tensor->shape[0];
  return absl::InvalidArgumentError(absl::StrCat(
      "tensor ", name, " does not fit ", slot.name, ": shape=", ToString(tensor->shape),
      " expected=[n,", slot.shape[1], "] as part of ", ToString(slot.shape)));
}

absl::Status CheckTotal(const LinearSlot& slot, int64_t rows) {
  if (rows == slot.shape[0]) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tensors of ", slot.name, " do not add up: rows=", rows, " expected=", ToString(slot.shape),
      " tensors=", absl::StrJoin(slot.weights, ",")));
}

}  // namespace

absl::StatusOr<const ModelFamily*> FamilyOf(const Checkpoint& checkpoint) {
  for (const ModelFamily& family : AllFamilies()) {
    if (family.matches(checkpoint)) return &family;
  }
  const nlohmann::json* type = ConfigReader(checkpoint.config()).Find("model_type");
  const auto name = [](std::string* out, const ModelFamily& f) {
    out->append(f.name.data(), f.name.size());
  };
  return absl::UnimplementedError(absl::StrCat(
      "no model family serves this checkpoint: model_type=",
      type != nullptr && type->is_string() ? type->get<std::string>().substr(0, 80) : "absent",
      " families=", absl::StrJoin(AllFamilies(), ",", name)));
}

absl::StatusOr<Tensor> ReadSlotWeight(const Checkpoint& checkpoint, const LinearSlot& slot) {
  std::vector<int64_t> rows;
  int64_t total = 0;
  for (const std::string& name : slot.weights) {
    ASSIGN_OR_RETURN(rows.emplace_back(), PartRows(checkpoint, name, slot));
    total += rows.back();
  }
  RETURN_IF_ERROR(CheckTotal(slot, total));
  ASSIGN_OR_RETURN(Tensor weight, Tensor::Create(CpuDevice(), slot.shape, DType::kF32));
  float* out = weight.data<float>();
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto elements = static_cast<size_t>(rows[i] * slot.shape[1]);
    RETURN_IF_ERROR(checkpoint.ReadRows(slot.weights[i], 0, rows[i], {out, elements}));
    out += elements;
  }
  return weight;
}

absl::StatusOr<Tensor> ReadSlotBias(const Checkpoint& checkpoint, const LinearSlot& slot) {
  if (slot.biases.empty()) return Tensor();
  if (slot.biases.size() != slot.weights.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", slot.name, " needs a bias per weight: weights=", slot.weights.size(),
                     " biases=", slot.biases.size()));
  }
  ASSIGN_OR_RETURN(Tensor bias, Tensor::Create(CpuDevice(), {slot.shape[0]}, DType::kF32));
  int64_t at = 0;
  for (size_t i = 0; i < slot.weights.size(); ++i) {
    ASSIGN_OR_RETURN(const int64_t rows, PartRows(checkpoint, slot.weights[i], slot));
    if (at + rows > slot.shape[0]) return CheckTotal(slot, at + rows);
    const std::span<float> out(bias.data<float>() + at, static_cast<size_t>(rows));
    at += rows;
    if (slot.biases[i].empty()) {
      std::fill(out.begin(), out.end(), 0.0f);
      continue;
    }
    ASSIGN_OR_RETURN(const CheckpointTensor* tensor, checkpoint.Find(slot.biases[i]));
    if (tensor->shape.elements() != rows) {
      return absl::InvalidArgumentError(absl::StrCat("tensor ", slot.biases[i], " does not fit ",
                                                     slot.name, ": shape=", ToString(tensor->shape),
                                                     " expected=[", rows, "]"));
    }
    RETURN_IF_ERROR(checkpoint.ReadRows(slot.biases[i], 0, tensor->shape[0], out));
  }
  RETURN_IF_ERROR(CheckTotal(slot, at));
  return bias;
}

absl::Status Model::FetchLogits(std::span<const RowCandidates> /*candidates*/,
                                MutableView /*out*/) const {
  return absl::InternalError("this model gives rows of logits, no candidates");
}

KvPool::Layout Model::kv_layout(const KvFormat& format) const {
  KvPool::Layout layout = {.layers = spec().layers,
                           .kv_heads = spec().kv_heads,
                           .head_dim = spec().head_dim,
                           .dtype = format.dtype,
                           .window = format.window,
                           .sinks = format.sinks,
                           .on_gpu = device().kind() == DeviceKind::kCuda};
  if (format.dtype != DType::kI8 && format.dtype != DType::kU4) return layout;
  const size_t width = static_cast<size_t>(layout.kv_heads) * layout.head_dim;
  const size_t channels = width * static_cast<size_t>(layout.layers);
  KvKeys keys = {.mean = std::vector<float>(channels, 0.0f),
                 .scale = std::vector<float>(channels, 1.0f),
                 .inverse_scale = std::vector<float>(channels, 1.0f),
                 .int8_scores = std::vector<uint8_t>(static_cast<size_t>(layout.layers), 0)};
  bool any = false;
  for (const LinearSlot& slot : slots()) {
    const auto found = linears().find(slot.name);
    const bool there = found != linears().end() && found->second != nullptr;
    const KeyParts* parts = there ? found->second->keys() : nullptr;
    if (parts == nullptr || slot.layer < 0) continue;
    any = true;
    keys.int8_scores[slot.layer] = parts->int8_scores ? 1 : 0;
    if (parts->scale.size() != width) continue;  // none: families refuse another width
    const size_t at = static_cast<size_t>(slot.layer) * width;
    for (size_t i = 0; i < width; ++i) {
      keys.mean[at + i] = parts->mean[i];
      keys.scale[at + i] = parts->scale[i];
      keys.inverse_scale[at + i] = 1.0f / parts->scale[i];
    }
  }
  if (any) layout.keys = std::make_shared<const KvKeys>(std::move(keys));
  return layout;
}

absl::StatusOr<std::unique_ptr<const Model>> BuildUniform(const Checkpoint& checkpoint,
                                                          std::string_view scheme_name,
                                                          const LinearOptions& options) {
  ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(scheme_name));
  ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(checkpoint));
  ASSIGN_OR_RETURN(const ModelSpec spec, family->parse(checkpoint));
  LinearMap linears;
  for (const LinearSlot& slot : family->slots(spec)) {
    absl::StatusOr<QuantizedLinear> linear = EncodeSlot(checkpoint, slot, *scheme, options);
    if (!linear.ok()) return Annotate(linear.status(), slot.name);
    linears[slot.name] = std::make_shared<const QuantizedLinear>(*std::move(linear));
  }
  return family->build(spec, checkpoint, std::move(linears));
}

absl::StatusOr<LinearMap> EncodeInF32(const Checkpoint& checkpoint,
                                      std::span<const LinearSlot> slots, ThreadPool& pool) {
  ASSIGN_OR_RETURN(const QuantScheme* exact, FindScheme("f32"));
  std::vector<absl::StatusOr<QuantizedLinear>> encoded;
  for (size_t i = 0; i < slots.size(); ++i) encoded.emplace_back(absl::UnknownError("not yet"));
  pool.ParallelFor(std::ssize(slots), 1, [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i)
      encoded[i] = EncodeSlot(checkpoint, slots[i], *exact, {});
  });
  LinearMap linears;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (!encoded[i].ok()) return Annotate(encoded[i].status(), slots[i].name);
    linears[slots[i].name] = std::make_shared<const QuantizedLinear>(*std::move(encoded[i]));
  }
  return linears;
}

bool IsHead(const ModelSpec& spec, const LinearSlot& slot) {
  return slot.kind == LinearSlot::Kind::kHead ||
         (slot.kind == LinearSlot::Kind::kEmbedding && spec.tied_head &&
          spec.task == ModelTask::kGenerate);
}

}  // namespace assay
