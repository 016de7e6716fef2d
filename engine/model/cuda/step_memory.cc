#include "engine/model/cuda/step_memory.h"

#include "engine/ops/cuda/decode_attention.h"

namespace assay {

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
  const int head_dim = widths.heads == 0 ? 0 : widths.q / widths.heads;
  attention_partial = Take(
      sizes.decode ? DecodeWorkspaceBytes(sizes.rows, widths.heads, head_dim, widths.splits) : 0);
  arrived_ints_ = sizes.decode ? rows * of(widths.kv_heads) : 0;
}

void StepMemory::Close() {
  expanded = Take(most_.expanded_bytes);
  padded = Take(most_.padded_bytes);
  workspace = Take(most_.workspace_bytes);
  partial = Take(most_.partial_floats * sizeof(float));
  counters = Take(most_.counters * sizeof(int));
  arrived = Take(arrived_ints_ * sizeof(int));
  counter_bytes = end - counters;
}

CudaScratch StepMemory::ScratchIn(std::byte* memory) const {
  return {.expanded = memory + expanded,
          .padded = memory + padded,
          .partial = reinterpret_cast<float*>(memory + partial),
          .counters = reinterpret_cast<int*>(memory + counters),
          .workspace = memory + workspace};
}

}  // namespace assay
