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

// The slot whose output the logits are: the head, or the table that it is tied to.
const LinearSlot* HeadOf(const Model& model) {
  const ModelSpec& spec = model.spec();
  if (spec.task != ModelTask::kGenerate) return nullptr;
  const LinearSlot* head = nullptr;
  for (const LinearSlot& slot : model.slots()) {
    const bool is_head = slot.kind == LinearSlot::Kind::kHead ||
                         (slot.kind == LinearSlot::Kind::kEmbedding && spec.tied_head);
    if (is_head) head = &slot;
  }
  return head;
}

}  // namespace

ModelPass::Size PassSize(const Model& model, const EvaluationSet& set, DType kv_dtype) {
  size_t most = 1;
  for (const auto& document : set.documents) most = std::max(most, document.size());
  const auto longest = static_cast<int>(most);
  if (model.spec().task == ModelTask::kGenerate) {
    return {.sequences = 1,
            .context = longest,
            .rows = std::min(kChunkRows, longest),
            .out_rows = std::min(kChunkRows, longest),
            .kv_dtype = kv_dtype};
  }
  return {.sequences = kEncoderSequences,
          .context = longest,
          .rows = int64_t{kEncoderSequences} * longest,
          .out_rows = kEncoderSequences,
          .kv_dtype = kv_dtype};
}

absl::StatusOr<ReferenceOutputs> ReferenceOutputs::Record(
    const Model& reference, const EvaluationSet& set, ThreadPool& pool,
    const std::function<absl::Status(double fraction)>& progress) {
  ReferenceOutputs outputs(reference, set, pool);
  ASSIGN_OR_RETURN(ModelPass pass,
                   ModelPass::Create(reference, PassSize(reference, set, DType::kF32), pool));
  if (reference.spec().task != ModelTask::kGenerate) {
    RETURN_IF_ERROR(outputs.RecordEncoder(pass, progress));
    return outputs;
  }
  RETURN_IF_ERROR(outputs.RecordDecoder(reference, pass, progress));
  ASSIGN_OR_RETURN(Arena arena,
                   Arena::Create(CpuDevice(), outputs.head_->scratch_bytes(kChunkRows)));
  outputs.arena_.emplace(std::move(arena));
  return outputs;
}

void ReferenceOutputs::KeepInput(const LinearSlot& slot, TensorView x) {
  std::vector<float>& input = inputs_[slot.name];
  const auto wanted = static_cast<size_t>(kLayerRows * x.shape[1]);
  const std::span<const float> values = Floats(x);
  const size_t some = std::min(values.size(), wanted - std::min(wanted, input.size()));
  input.insert(input.end(), values.begin(), values.begin() + static_cast<int64_t>(some));
}

absl::Status ReferenceOutputs::RecordDecoder(const Model& reference, ModelPass& pass,
                                             const std::function<absl::Status(double)>& progress) {
  const LinearSlot* head = HeadOf(reference);
  head_slot_ = head->name;
  head_ = reference.linears().find(head->name)->second;
  const auto hidden = static_cast<size_t>(spec_.hidden);
  const LinearObserver observer = [&](const LinearSlot& slot, TensorView x, TensorView) {
    KeepInput(slot, x);
  };
  for (size_t d = 0; d < set_->documents.size(); ++d) {
    const std::span<const int32_t> tokens = set_->documents[d];
    kept_[d].resize(tokens.size() * hidden);
    for (size_t start = 0; start < tokens.size(); start += kChunkRows) {
      const size_t rows = std::min<size_t>(kChunkRows, tokens.size() - start);
      const ModelPass::Span span{0, static_cast<int>(start), tokens.subspan(start, rows)};
      RETURN_IF_ERROR(
          pass.ForwardToHead(std::span(&span, 1), d == 0 ? &observer : nullptr,
                             std::span(kept_[d]).subspan(start * hidden, rows * hidden)));
    }
    if (progress)
      RETURN_IF_ERROR(progress(static_cast<double>(d + 1) / static_cast<double>(kept_.size())));
  }
  if (!kept_.empty()) {
    const int64_t rows = static_cast<int64_t>(kept_[0].size()) / spec_.hidden;
    KeepInput(*head, ViewOf(kept_[0].data(), {rows, spec_.hidden}));
  }
  return absl::OkStatus();
}

absl::Status ReferenceOutputs::RecordEncoder(ModelPass& pass,
                                             const std::function<absl::Status(double)>& progress) {
  const size_t documents = set_->documents.size();
  const auto columns = static_cast<size_t>(pass.out_columns());
  const LinearObserver observer = [&](const LinearSlot& slot, TensorView x, TensorView) {
    KeepInput(slot, x);
  };
  for (size_t begin = 0; begin < documents; begin += kEncoderSequences) {
    const size_t end = std::min<size_t>(begin + kEncoderSequences, documents);
    std::vector<ModelPass::Span> spans;
    for (size_t d = begin; d < end; ++d)
      spans.push_back({static_cast<int>(d - begin), 0, set_->documents[d]});
    ASSIGN_OR_RETURN(const std::span<const float> out,
                     pass.Forward(spans, true, begin == 0 ? &observer : nullptr));
    for (size_t d = begin; d < end; ++d) {
      const std::span<const float> row = out.subspan((d - begin) * columns, columns);
      kept_[d].assign(row.begin(), row.end());
    }
    if (progress)
      RETURN_IF_ERROR(progress(static_cast<double>(end) / static_cast<double>(documents)));
  }
  return absl::OkStatus();
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
