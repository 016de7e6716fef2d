// The inner loops of CpuOps for one instruction set, as plain functions: one row or one attention
// tile per call, single-threaded, no allocation. kernels_impl.h defines them over an eight-lane
// vector type; each kernels_<isa>.cc instantiates it once, compiled for that instruction set.
//
// Sums run over eight lanes (element i into lane i mod 8, ascending), then over the lanes in a
// fixed tree. So a result depends on its operands alone, never on how rows were split.
#pragma once
#include <cstddef>
#include <cstdint>

#include "engine/ops/ops.h"

namespace assay {

// Keys per step of the streaming softmax. Tiles begin at multiples of it, counted from position 0,
// so that a row sees the same sequence of steps whichever chunk it is computed in.
inline constexpr int kKeyTile = 64;
inline constexpr int kKeyChunk = KvPool::kBlockTokens;  // keys with one base pointer
static_assert(kKeyTile % kKeyChunk == 0);
inline constexpr int kMaxHeadDim = 512;
// A tile holds `rows` x `heads` query vectors, bounded by these two: they size its working set
// (28 KB at head_dim 64, so that it stays in L1 and L2) and its arrays on the stack.
inline constexpr int kMaxTileVectors = 48;
inline constexpr int kMaxTileFloats = 8192;  // tile vectors x head_dim rounded up to 8

// Rows of one kv head that are read in f16 where a query is near enough (KvFormat in
// engine/ops/kv_pool.h): those of the batch itself, rounded as they are read, and those of the
// sequence's slot.
struct RecentRows {
  int window = 0, sinks = 0;
  int first_position = 0;       // of the batch's rows; earlier ones are in the slot
  const float* keys = nullptr;  // of the batch: row 0, `stride` floats from row to row
  const float* values = nullptr;
  int64_t stride = 0;
  const uint16_t* slot_keys = nullptr;  // [sinks + window, head_dim]
  const uint16_t* slot_values = nullptr;
  const float* key_mean = nullptr;  // [head_dim] each, or null: KvKeys
  const float* key_inverse_scale = nullptr;

  // Whether a query at `position` reads key and value `at` in 16 bit.
  bool Has(int at, int position) const { return at < sinks || at > position - window; }
};

// Keys and values of one kv head, in chunks of kKeyChunk rows: paged when `blocks` is set, else
// consecutive rows of a matrix.
struct KeySource {
  const std::byte* keys = nullptr;    // of block 0, or of row 0
  const std::byte* values = nullptr;  // likewise
  DType dtype = DType::kF32;          // rows as in engine/ops/kv_row.h
  int64_t key_stride = 0;             // bytes from row to row
  int64_t value_stride = 0;
  const int32_t* blocks = nullptr;
  int64_t block_stride = 0;          // bytes
  const float* key_scale = nullptr;  // [head_dim] queries are multiplied by, or null: KvKeys
  bool int8_scores = false;          // i8 rows: the product of queries and keys is one of integers
  RecentRows recent;                 // of tiles that are causal
};

// Query rows of one sequence times query heads of one kv head.
struct AttentionTile {
  const float* q = nullptr;  // first row, first head
  int64_t q_stride = 0;      // floats from row to row; heads are head_dim apart
  float* y = nullptr;        // as q
  int64_t y_stride = 0;
  int rows = 0, heads = 0, head_dim = 0;
  float scale = 0;
  KeySource source;
  // Row r attends to keys [max(0, first_position + r + 1 - window), first_position + r], or, when
  // not causal, to [0, num_keys).
  bool causal = true;
  int first_position = 0, window = 0;
  int num_keys = 0;
};

struct OpKernels {
  const char* name;
  void (*rms_norm)(const float* x, const float* gain, float eps, int64_t d, float* y);
  void (*layer_norm)(const float* x, const float* gain, const float* bias, float eps, int64_t d,
                     float* y);
  // In place on one head: pairs (i, i + half).
  void (*rope)(float* x, const float* cos, const float* sin, int64_t half);
  void (*store_kv)(DType dtype, const float* x, int64_t n, std::byte* row);
  void (*attention)(const AttentionTile& tile);
  void (*gated_activation)(Activation act, const float* x, int64_t f, float* y);  // x [2 f]
  void (*activate)(Activation act, float* x, int64_t n);
  void (*add)(const float* x, int64_t n, float* y);
};

extern const OpKernels kBaselineKernels;  // any x86-64
extern const OpKernels kAvx2Kernels;      // REQUIRES: HostCpu() has avx2, fma and f16c

}  // namespace assay
