#include "engine/model/cuda/scratch_bound.h"

#include <algorithm>

#include "engine/model/cuda/cuda_llama.h"
#include "engine/model/cuda/step_memory.h"
#include "engine/model/families/forward_parts.h"
#include "engine/ops/cuda/prefill_attention.h"
#include "quant/kernels/cuda/cublas_lt.h"
#include "quant/kernels/cuda/lt_products.h"
#include "quant/kernels/cuda/skinny.h"

namespace assay {
namespace {

// Weights lie in whole groups of k.
constexpr size_t kGroup = 256;
size_t Grouped(int64_t k) { return (static_cast<size_t>(k) + kGroup - 1) / kGroup * kGroup; }

// Every way that a linear may be multiplied: expanded to 16 bit, or as E4M3 with scales of blocks
// for weight and x; x padded; partial sums of few rows; cuBLASLt's workspace.
void NeedAnyProduct(const Shape& shape, int rows, ProductMemory& memory) {
  const auto n = static_cast<size_t>(shape[0]), k = Grouped(shape[1]),
             m = static_cast<size_t>(rows);
  const size_t as_blocks = n * k + m * k + k / 128 * (n + m) * sizeof(float) + 4 * kGroup;
  const int few = std::min(rows, kFewRows);
  memory.Need(
      {.expanded_bytes = std::max(2 * n * k, as_blocks),
       .padded_bytes = 2 * m * k,
       .partial_floats = SkinnyWorkspaceFloats(few, static_cast<int>(n), static_cast<int>(k)),
       .counters = static_cast<size_t>(SkinnyCounters(few, static_cast<int>(n))),
       .workspace_bytes = CublasLt::kWorkspaceBytes});
}

uint64_t DecoderBound(const ModelSpec& spec, const std::vector<LinearSlot>& slots,
                      const ScratchRows& size) {
  const CudaModelOptions options;
  // A captured step is rounded up to its bucket, and has as many logits.
  const int captured = static_cast<int>(std::min<int64_t>(size.rows, options.max_graph_rows));
  const int bucket = Bucketed({.rows = captured, .decode = true}, options.max_graph_rows).rows;
  const int rows = std::max(EvenRows(static_cast<int>(size.rows)), bucket);
  const int logit_rows = std::max(EvenRows(static_cast<int>(size.out_rows)), bucket);
  StepMemory memory(
      LlamaWidths(spec, options),
      {.rows = rows,
       .sequences = rows,
       .logit_rows = logit_rows,
       .max_blocks = TableWidth((size.context_tokens + kKvBlockTokens - 1) / kKvBlockTokens),
       .tiles = rows / kQueryTileRows + rows,
       .decode = true});
  for (const LinearSlot& slot : slots)
    NeedAnyProduct(slot.shape, slot.shape[0] == spec.vocab ? logit_rows : rows, memory);
  memory.Close();
  return memory.end + 64;
}

uint64_t EncoderBound(const ModelSpec& spec, const std::vector<LinearSlot>& slots,
                      const ScratchRows& size) {
  const int64_t sequences = std::min(size.rows, std::max<int64_t>(size.out_rows, 1));
  const int rows = EvenRows(static_cast<int>(size.rows));
  EncodeMemory memory({.hidden = spec.hidden,
                       .ffn = spec.ffn,
                       .words = static_cast<int>(Grouped(spec.hidden)),
                       .out = static_cast<int>(EncoderColumns(spec))},
                      {.rows = rows,
                       .sequences = static_cast<int>(sequences),
                       .tiles = static_cast<int>(size.rows / kQueryTileRows + sequences)});
  for (const LinearSlot& slot : slots) {
    if (slot.kind == LinearSlot::Kind::kLinear) NeedAnyProduct(slot.shape, rows, memory);
  }
  memory.Close();
  return memory.end + 64;
}

}  // namespace

uint64_t ScratchBound(const ModelSpec& spec, const std::vector<LinearSlot>& slots,
                      const ScratchRows& size) {
  return spec.task == ModelTask::kGenerate ? DecoderBound(spec, slots, size)
                                           : EncoderBound(spec, slots, size);
}

uint64_t TuningBound(const std::vector<LinearSlot>& slots) {
  constexpr auto kRows = static_cast<uint64_t>(LtProduct::kMostRows);
  uint64_t most = 0;
  for (const LinearSlot& slot : slots) {
    const auto n = static_cast<uint64_t>(slot.shape[0]), k = static_cast<uint64_t>(slot.shape[1]);
    const uint64_t result = std::min<uint64_t>(4 * n * kRows, LtOptions().most_result_bytes);
    const uint64_t scales = 4 * ((k + 127) / 128) * (n + kRows);
    most = std::max(most, 2 * k * (n + kRows) + scales + result + CublasLt::kWorkspaceBytes);
  }
  return most;
}

}  // namespace assay
