#include "engine/lifecycle/model_pass.h"

#include <numeric>

#include "base/thread_pool.h"

namespace assay {
namespace {

int64_t OutColumns(const ModelSpec& spec) {
  switch (spec.task) {
    case ModelTask::kGenerate:
      return spec.vocab;
    case ModelTask::kEmbed:
      return spec.hidden;
    case ModelTask::kClassify:
      return spec.num_labels;
  }
  return 0;
}

}  // namespace

ModelPass::ModelPass(const Model& model, const Size& size, ThreadPool& pool, Arena arena)
    : model_(model),
      size_(size),
      pool_(pool),
      arena_(std::move(arena)),
      out_columns_(OutColumns(model.spec())) {}

absl::StatusOr<ModelPass> ModelPass::Create(const Model& model, const Size& size,
                                            ThreadPool& pool) {
  ASSIGN_OR_RETURN(
      Arena arena,
      Arena::Create(model.device(), model.scratch_bytes(size.rows, size.out_rows, size.context)));
  ModelPass pass(model, size, pool, std::move(arena));
  if (model.spec().task == ModelTask::kGenerate) RETURN_IF_ERROR(pass.MakeKv());
  return pass;
}

absl::Status ModelPass::MakeKv() {
  const int per_sequence = (size_.context + KvPool::kBlockTokens - 1) / KvPool::kBlockTokens;
  KvPool::Layout layout = model_.kv_layout(size_.kv_format);
  if (size_.layers > 0) {
    layout.first_layer = size_.first_layer;
    layout.layers = size_.layers;
  }
  ASSIGN_OR_RETURN(KvPool kv, KvPool::Create(model_.device(), std::move(layout),
                                             size_.sequences * per_sequence, size_.sequences));
  kv_.emplace(std::move(kv));
  blocks_.resize(static_cast<size_t>(size_.sequences));
  int32_t next = 0;
  for (std::vector<int32_t>& blocks : blocks_) {
    blocks.resize(static_cast<size_t>(per_sequence));
    std::iota(blocks.begin(), blocks.end(), next);
    next += per_sequence;
  }
  return absl::OkStatus();
}

std::vector<SequenceSpan> ModelPass::Gather(std::span<const Span> spans, bool logits) {
  tokens_.clear();
  token_types_.clear();
  std::vector<SequenceSpan> sequences;
  for (const Span& span : spans) {
    SequenceSpan sequence;
    sequence.first_row = static_cast<int32_t>(tokens_.size());
    sequence.num_rows = static_cast<int32_t>(span.tokens.size());
    sequence.start_position = span.start;
    sequence.first_decode_position = span.first_decode;
    if (kv_.has_value()) {
      const int end = span.start + sequence.num_rows;
      const auto used =
          static_cast<size_t>((end + KvPool::kBlockTokens - 1) / KvPool::kBlockTokens);
      sequence.slot = span.sequence;
      sequence.blocks = std::span(blocks_[static_cast<size_t>(span.sequence)]).first(used);
    }
    sequences.push_back(sequence);
    tokens_.insert(tokens_.end(), span.tokens.begin(), span.tokens.end());
    if (span.token_types.empty()) continue;
    token_types_.resize(tokens_.size() - span.tokens.size(), 0);
    token_types_.insert(token_types_.end(), span.token_types.begin(), span.token_types.end());
  }
  if (!token_types_.empty()) token_types_.resize(tokens_.size(), 0);
  logit_rows_.resize(kv_.has_value() && logits ? tokens_.size() : 0);
  std::iota(logit_rows_.begin(), logit_rows_.end(), 0);
  return sequences;
}

absl::StatusOr<std::span<const float>> ModelPass::Forward(std::span<const Span> spans, bool logits,
                                                          const LinearObserver* observer,
                                                          const LayerPart* part) {
  const std::vector<SequenceSpan> sequences = Gather(spans, logits);
  const size_t out_rows = kv_.has_value() ? logit_rows_.size() : spans.size();
  if (out_.empty() && out_rows > 0) {
    ASSIGN_OR_RETURN(out_,
                     Tensor::Create(CpuDevice(), {size_.out_rows, out_columns_}, DType::kF32));
  }
  const ForwardBatch batch{tokens_, sequences, logit_rows_, token_types_};
  MutableView out = out_.mutable_view();
  out.shape = Shape{static_cast<int64_t>(out_rows), out_columns_};
  ComputeContext compute = context();
  RETURN_IF_ERROR(model_.Forward({.batch = batch,
                                  .kv = kv_.has_value() ? &*kv_ : nullptr,
                                  .out = out,
                                  .observer = observer,
                                  .part = part,
                                  .head_input = {}},
                                 compute));
  return std::span<const float>(out_.data<float>(), out_rows * static_cast<size_t>(out_columns_));
}

absl::Status ModelPass::ForwardToHead(std::span<const Span> spans, const LinearObserver* observer,
                                      std::span<float> out, const LayerPart* part) {
  const std::vector<SequenceSpan> sequences = Gather(spans, true);
  const ForwardBatch batch{tokens_, sequences, logit_rows_, {}};
  const Shape shape{static_cast<int64_t>(tokens_.size()), model_.spec().hidden};
  ComputeContext compute = context();
  return model_.Forward(
      {.batch = batch,
       .kv = &*kv_,
       .out = {},
       .observer = observer,
       .part = part,
       .head_input = {reinterpret_cast<std::byte*>(out.data()), shape, DType::kF32, &CpuDevice()}},
      compute);
}

}  // namespace assay
