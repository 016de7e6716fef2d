// Where the operands of one step lie in its scratch memory on a GPU: the arithmetic of the memory
// plan, fixed by sizes before anything runs. Pure.
#pragma once
#include <algorithm>

#include "engine/model/cuda/cuda_batch.h"
#include "engine/model/cuda/encode_batch.h"
#include "quant/kernels/cuda/cuda_linear.h"

namespace assay {

// What products use besides their operands. Offsets in bytes, each a multiple of 256. Need() for
// every linear, then Close() of what derives from it.
class ProductMemory {
 public:
  struct Products {  // of one linear
    size_t expanded_bytes = 0, padded_bytes = 0, partial_floats = 0, counters = 0;
    size_t workspace_bytes = 0;  // of cuBLASLt
  };
  void Need(const Products& products);
  void Need(const CudaLinear& linear, int rows) {
    Need({linear.expanded_bytes(rows), linear.padded_bytes(rows), linear.partial_floats(rows),
          linear.counters(rows), linear.workspace_bytes(rows)});
  }
  CudaScratch ScratchIn(std::byte* memory) const;

  size_t expanded = 0, padded = 0, partial = 0, workspace = 0;
  size_t counters = 0, counter_bytes = 0;  // zeros before a step
  size_t end = 0;

 protected:
  size_t Take(size_t bytes) {
    const size_t begin = end;
    end += (bytes + 255) / 256 * 256;
    return begin;
  }
  void CloseProducts();

 private:
  Products most_;
};

struct StepWidths {
  int hidden = 0, q = 0, kv = 0, ffn = 0, vocab = 0, heads = 0, kv_heads = 0;
  int splits = 1;  // of attention's positions
};

// Of a decoder.
struct StepMemory : ProductMemory {
  StepMemory(const StepWidths& widths, const CudaStepSizes& sizes);
  void Close();

  size_t ints;         // CudaBatchLayout
  size_t stream;       // f32 [rows, hidden]
  size_t normed;       // what enters a product: 16 bit [rows, the widest of hidden, q, ffn]
  size_t row_scales;   // f32 [rows or logit_rows]: its scales, where it is codes
  size_t wide;         // f32 [rows, q + 2 kv or 2 ffn]
  size_t q, attended;  // 16 bit [rows, q]
  size_t logits;       // f32 [logit_rows, vocab]
  size_t heads;        // RowHead [logit_rows]
  size_t ranked;       // RankedLogit [logit_rows, kMostCandidates]
  size_t attention_partial;
  size_t arrived = 0;  // int [rows, kv_heads]: of attention, among the counters

 private:
  size_t arrived_ints_;
};

struct EncodeWidths {
  int hidden = 0, ffn = 0, words = 0, out = 0;  // words: of rows of the table, as they lie there
};

// Of an encoder.
struct EncodeMemory : ProductMemory {
  EncodeMemory(const EncodeWidths& widths, const EncodeSizes& sizes);
  void Close() { CloseProducts(); }

  size_t ints;        // EncodeLayout
  size_t stream;      // f32 [rows, hidden]
  size_t normed;      // what enters a product: 16 bit [rows, the wider of hidden, ffn]
  size_t row_scales;  // f32 [rows]: its scales, where it is codes
  size_t wide;        // f32 [rows, the widest of 3 hidden, ffn, words]
  size_t qkv;         // 16 bit [rows, 3 hidden]
  size_t attended;    // 16 bit [rows, hidden]
  size_t dense;       // f32 [sequences, hidden]: between the layers of a head
  size_t out;         // f32 [sequences, out]
};

}  // namespace assay
