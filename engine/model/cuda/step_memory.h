// Where the operands of one step of a decoder lie in its scratch memory on a GPU: the arithmetic of
// the memory plan, fixed by sizes before anything runs. Pure.
#pragma once
#include <algorithm>

#include "engine/model/cuda/cuda_batch.h"
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

struct StepWidths {
  int hidden = 0, q = 0, kv = 0, ffn = 0, vocab = 0, heads = 0, kv_heads = 0;
  int splits = 1;  // of attention's positions
};

// Offsets in bytes, each a multiple of 256. Need() for every linear, then Close().
struct StepMemory {
  struct Products {  // of one linear
    size_t expanded_bytes = 0, padded_bytes = 0, partial_floats = 0, counters = 0;
    size_t workspace_bytes = 0;  // of cuBLASLt
  };

  StepMemory(const StepWidths& widths, const CudaStepSizes& sizes);
  void Need(const Products& products) {
    most_.expanded_bytes = std::max(most_.expanded_bytes, products.expanded_bytes);
    most_.padded_bytes = std::max(most_.padded_bytes, products.padded_bytes);
    most_.partial_floats = std::max(most_.partial_floats, products.partial_floats);
    most_.counters = std::max(most_.counters, products.counters);
    most_.workspace_bytes = std::max(most_.workspace_bytes, products.workspace_bytes);
  }
  void Close();
  CudaScratch ScratchIn(std::byte* memory) const;

  size_t ints;         // CudaBatchLayout
  size_t stream;       // f32 [rows, hidden]
  size_t normed;       // what enters a product: 16 bit [rows, the widest of hidden, q, ffn]
  size_t row_scales;   // f32 [rows or logit_rows]: its scales, where it is codes
  size_t wide;         // f32 [rows, q + 2 kv or 2 ffn]
  size_t q, attended;  // 16 bit [rows, q]
  size_t logits;       // f32 [logit_rows, vocab]
  size_t attention_partial;
  size_t expanded = 0, padded = 0, partial = 0, workspace = 0;
  size_t counters = 0, counter_bytes = 0;  // zeros before a step: of products, then of attention
  size_t arrived = 0;                      // int [rows, kv_heads]
  size_t end = 0;

 private:
  size_t Take(size_t bytes) {
    const size_t begin = end;
    end += (bytes + 255) / 256 * 256;
    return begin;
  }
  Products most_;
  size_t arrived_ints_;
};

}  // namespace assay
