#include "engine/lifecycle/reference_outputs.h"

#include <algorithm>

#include "base/thread_pool.h"
#include "quant/accuracy.h"

namespace assay {
namespace {

std::span<const float> Floats(TensorView view) {
  return {view.as<float>(), static_cast<size_t>(view.shape.elements())};
}

MutableView ViewOf(std::vector<float>& values, Shape shape) {
  return {reinterpret_cast<std::byte*>(values.data()), shape, DType::kF32, &CpuDevice()};
}
TensorView ViewOf(const float* values, Shape shape) {
  return {reinterpret_cast<const std::byte*>(values), shape, DType::kF32, &CpuDevice()};
}

}  // namespace

absl::StatusOr<ReferenceOutputs> ReferenceOutputs::Record(
    const LayerSource& reference, const EvaluationSet& set, ThreadPool& pool,
    const std::function<absl::Status(double fraction)>& progress) {
  const ModelSpec& spec = reference.spec();
  ReferenceOutputs outputs(spec, pool);
  DocumentStreams streams(spec, set, {});
  const LinearObserver observer = [&](const LinearSlot& slot, TensorView x, TensorView) {
    outputs.KeepInput(slot, x);
  };
  std::shared_ptr<const Model> table;  // is the head too: not to be decoded twice
  for (int layer = 0; layer < spec.layers; ++layer) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model, reference.Layer(layer));
    if (layer == 0 && spec.tied_head) table = model;
    ASSIGN_OR_RETURN(ModelPass pass, ModelPass::Create(*model, streams.pass_size(layer), pool));
    RETURN_IF_ERROR(streams.Pass(pass, layer, &observer));
    if (progress) RETURN_IF_ERROR(progress(static_cast<double>(layer + 1) / spec.layers));
  }
  if (spec.task == ModelTask::kGenerate) RETURN_IF_ERROR(outputs.RecordHead(reference, streams));
  for (size_t d = 0; d < streams.documents(); ++d)
    outputs.kept_.push_back(std::move(streams.values(d)));
  return outputs;
}

absl::Status ReferenceOutputs::RecordHead(const LayerSource& reference, DocumentStreams& streams) {
  for (const LinearSlot& slot : reference.slots()) {
    if (IsHead(spec_, slot)) head_slot_ = slot.name;
  }
  ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model, reference.Layer(spec_.layers));
  ASSIGN_OR_RETURN(ModelPass pass,
                   ModelPass::Create(*model, streams.pass_size(spec_.layers), *pool_));
  RETURN_IF_ERROR(streams.ToHeadInput(pass));
  head_ = model->linears().find(head_slot_)->second;
  ASSIGN_OR_RETURN(Arena arena, Arena::Create(CpuDevice(), head_->scratch_bytes(kChunkRows)));
  arena_.emplace(std::move(arena));
  if (streams.documents() == 0) return absl::OkStatus();
  std::vector<float>& first = streams.values(0);
  const int64_t rows = static_cast<int64_t>(first.size()) / spec_.hidden;
  for (const LinearSlot& slot : reference.slots()) {
    if (slot.name == head_slot_) KeepInput(slot, ViewOf(first.data(), {rows, spec_.hidden}));
  }
  return absl::OkStatus();
}

void ReferenceOutputs::KeepInput(const LinearSlot& slot, TensorView x) {
  std::vector<float>& input = inputs_[slot.name];
  const auto wanted = static_cast<size_t>(kLayerRows * x.shape[1]);
  const std::span<const float> values = Floats(x);
  const size_t some = std::min(values.size(), wanted - std::min(wanted, input.size()));
  input.insert(input.end(), values.begin(), values.begin() + static_cast<int64_t>(some));
}

std::span<const float> ReferenceOutputs::Logits(size_t document, int start, int rows) {
  logits_.resize(static_cast<size_t>(rows) * static_cast<size_t>(spec_.vocab));
  const float* x = kept_[document].data() + static_cast<int64_t>(start) * spec_.hidden;
  ComputeContext context{*pool_, *arena_};
  const Arena::Scope scope(context.scratch);
  head_->Forward(ViewOf(x, {rows, spec_.hidden}), ViewOf(logits_, {rows, spec_.vocab}), context);
  return logits_;
}

absl::StatusOr<std::optional<double>> ReferenceOutputs::OutputSqnr(
    const std::string& slot, const QuantizedLinear& original, const QuantizedLinear& served) const {
  const auto input = inputs_.find(slot);
  if (input == inputs_.end()) return std::optional<double>();
  const Shape& w = original.problem().shape;
  const int64_t rows = static_cast<int64_t>(input->second.size()) / w[1];
  ASSIGN_OR_RETURN(Arena arena, Arena::Create(CpuDevice(), std::max(original.scratch_bytes(rows),
                                                                    served.scratch_bytes(rows))));
  ComputeContext context{*pool_, arena};
  std::vector<float> expected(static_cast<size_t>(rows * w[0])), actual(expected.size());
  const auto run = [&](const QuantizedLinear& linear, std::vector<float>& y) {
    const Arena::Scope scope(arena);
    linear.Forward(ViewOf(input->second.data(), {rows, w[1]}), ViewOf(y, {rows, w[0]}), context);
  };
  run(original, expected);
  run(served, actual);
  SignalNoise power;
  power.Add(expected, actual);
  return power.sqnr_db();
}

}  // namespace assay
