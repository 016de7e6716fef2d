#include "engine/model/cuda/step_memory.h"

#include "engine/ops/cuda/decode_attention.h"
#include "engine/ops/cuda/top_candidates.h"

namespace assay {

void ProductMemory::Need(const Products& products) {
  most_.expanded_bytes = std::max(most_.expanded_bytes, products.expanded_bytes);
  most_.padded_bytes = std::max(most_.padded_bytes, products.padded_bytes);
  most_.partial_floats = std::max(most_.partial_floats, products.partial_floats);
  most_.counters = std::max(most_.counters, products.counters);
  most_.workspace_bytes = std::max(most_.workspace_bytes, products.workspace_bytes);
}

void ProductMemory::CloseProducts() {
  expanded = Take(most_.expanded_bytes);
  padded = Take(most_.padded_bytes);
  workspace = Take(most_.workspace_bytes);
  partial = Take(most_.partial_floats * sizeof(float));
  counters = Take(most_.counters * sizeof(int));
  counter_bytes = end - counters;
}

CudaScratch ProductMemory::ScratchIn(std::byte* memory) const {
  return {.expanded = memory + expanded,
          .padded = memory + padded,
          .partial = reinterpret_cast<float*>(memory + partial),
          .counters = reinterpret_cast<int*>(memory + counters),
          .workspace = memory + workspace};
}

StepMemory::StepMemory(const StepWidths& widths, const CudaStepSizes& sizes) {
  const auto rows = static_cast<size_t>(sizes.rows),
             logit_rows = static_cast<size_t>(sizes.logit_rows);
  const size_t most_rows = std::max(rows, logit_rows);
  const auto of = [](int width) { return static_cast<size_t>(width); };
  ints = Take(CudaBatchLayout(sizes).end * sizeof(int32_t));
  stream = Take(4 * rows * of(widths.hidden));
  normed = Take(2 * most_rows * of(std::max({widths.hidden, widths.q, widths.ffn})));
  row_scales = Take(4 * most_rows);
  wide = Take(4 * rows * of(std::max(widths.q + 2 * widths.kv, 2 * widths.ffn)));
  q = Take(2 * rows * of(widths.q));
  attended = Take(2 * rows * of(widths.q));
  logits = Take(4 * logit_rows * of(widths.vocab));
  heads = Take(sizeof(RowHead) * logit_rows);
  ranked = Take(sizeof(RankedLogit) * kMostCandidates * logit_rows);
  const int head_dim = widths.heads == 0 ? 0 : widths.q / widths.heads;
  attention_partial = Take(
      sizes.decode ? DecodeWorkspaceBytes(sizes.rows, widths.heads, head_dim, widths.splits) : 0);
  arrived_ints_ = sizes.decode ? rows * of(widths.kv_heads) : 0;
}

void StepMemory::Close() {
  CloseProducts();
  arrived = Take(arrived_ints_ * sizeof(int));
  counter_bytes = end - counters;
}

EncodeMemory::EncodeMemory(const EncodeWidths& widths, const EncodeSizes& sizes) {
  const auto rows = static_cast<size_t>(sizes.rows),
             sequences = static_cast<size_t>(sizes.sequences);
  const auto of = [](int width) { return static_cast<size_t>(width); };
  ints = Take(EncodeLayout(sizes).end * sizeof(int32_t));
  stream = Take(4 * rows * of(widths.hidden));
  normed = Take(2 * rows * of(std::max(widths.hidden, widths.ffn)));
  row_scales = Take(4 * rows);
  wide = Take(4 * rows * of(std::max({3 * widths.hidden, widths.ffn, widths.words})));
  qkv = Take(2 * rows * of(3 * widths.hidden));
  attended = Take(2 * rows * of(widths.hidden));
  dense = Take(4 * sequences * of(widths.hidden));
  out = Take(4 * sequences * of(widths.out));
}

}  // namespace assay
