// Attention of the CPU backend at the shapes of SmolLM2-135M and MiniLM-L6, on one thread.
// Items are floating-point operations of Q K^T and P V over the visible keys; bytes are K and V.
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>

#include "base/thread_pool.h"
#include "engine/ops/ops.h"

namespace assay {
namespace {

// SmolLM2-135M: one layer of 9 heads, 3 kv heads, width 64.
constexpr int kHeads = 9, kKvHeads = 3, kHeadDim = 64;
constexpr int64_t kStride = (kHeads + 2 * kKvHeads) * kHeadDim;

// `rows` rows that end at position `context`, over a cache of this element type; keys in f32 or, of
// i8 caches, in integers.
struct Cache {
  DType dtype = DType::kF16;
  bool int8_scores = false;
};
void BM_PagedAttention(benchmark::State& state, Cache cache) {
  const auto rows = static_cast<int>(state.range(0)), context = static_cast<int>(state.range(1));
  const int blocks = context / KvPool::kBlockTokens;
  auto channels = std::make_shared<KvKeys>();
  channels->mean.assign(kKvHeads * kHeadDim, 0.0f);
  channels->scale = channels->inverse_scale = std::vector<float>(kKvHeads * kHeadDim, 1.0f);
  channels->int8_scores = {cache.int8_scores ? uint8_t{1} : uint8_t{0}};
  KvPool kv = *KvPool::Create(CpuDevice(), {1, kKvHeads, kHeadDim, cache.dtype, channels}, blocks);
  std::memset(kv.keys(0, 0, 0), 0, kv.bytes());
  std::vector<int32_t> table(blocks), tokens(rows);
  std::iota(table.begin(), table.end(), 0);
  const SequenceSpan span[] = {
      {.first_row = 0, .num_rows = rows, .start_position = context - rows, .blocks = table}};
  std::vector<float> q(rows * kStride, 0.01f), y(int64_t{rows} * kHeads * kHeadDim);
  const Ops& ops = **OpsFor(CpuDevice());
  ThreadPool pool({.num_threads = 1});
  Arena arena;
  ComputeContext c{pool, arena};
  const AttentionArgs args{
      .q = {q.data(), kStride},
      .heads = kHeads,
      .kv_heads = kKvHeads,
      .head_dim = kHeadDim,
      .scale = 0.125f,
      .y = {reinterpret_cast<std::byte*>(y.data()), Shape{rows, kHeads * kHeadDim}}};
  for (auto _ : state) {
    ops.PagedAttention(args, {.tokens = tokens, .sequences = span}, 0, kv, c);
    benchmark::ClobberMemory();
  }
  const int64_t keys = int64_t{rows} * (context - rows) + int64_t{rows} * (rows + 1) / 2;
  state.SetItemsProcessed(state.iterations() * keys * kHeads * kHeadDim * 4);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(kv.bytes()));
}
void Shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "context"})->Args({512, 512})->Args({128, 2048});
  b->Args({1, 512})->Args({1, 2048});
}
BENCHMARK_CAPTURE(BM_PagedAttention, f32, Cache{DType::kF32})->Apply(Shapes);
BENCHMARK_CAPTURE(BM_PagedAttention, f16, Cache{DType::kF16})->Apply(Shapes);
BENCHMARK_CAPTURE(BM_PagedAttention, i8, Cache{DType::kI8})->Apply(Shapes);
BENCHMARK_CAPTURE(BM_PagedAttention, i8_int8, Cache{DType::kI8, true})->Apply(Shapes);
BENCHMARK_CAPTURE(BM_PagedAttention, u4, Cache{DType::kU4})->Apply(Shapes);

// MiniLM-L6: one layer of 12 heads, width 32.
void BM_SelfAttention(benchmark::State& state) {
  const auto rows = static_cast<int>(state.range(0));
  constexpr int kWidth = 12 * 32;
  const std::vector<float> qkv(int64_t{rows} * 3 * kWidth, 0.01f);
  std::vector<float> y(int64_t{rows} * kWidth);
  const std::vector<int32_t> tokens(rows);
  const SequenceSpan span[] = {{.first_row = 0, .num_rows = rows}};
  const Ops& ops = **OpsFor(CpuDevice());
  ThreadPool pool({.num_threads = 1});
  Arena arena;
  ComputeContext c{pool, arena};
  const AttentionArgs args{.q = {qkv.data(), 3 * kWidth},
                           .heads = 12,
                           .kv_heads = 12,
                           .head_dim = 32,
                           .scale = 0.177f,
                           .y = {reinterpret_cast<std::byte*>(y.data()), Shape{rows, kWidth}}};
  for (auto _ : state) {
    ops.SelfAttention(args, {qkv.data() + kWidth, 3 * kWidth},
                      {qkv.data() + 2 * kWidth, 3 * kWidth}, {.tokens = tokens, .sequences = span},
                      c);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * int64_t{rows} * rows * kWidth * 4);
}
BENCHMARK(BM_SelfAttention)->ArgName("rows")->Arg(128)->Arg(512);

// The silu gate of SmolLM2's MLP over 512 rows.
void BM_GatedActivation(benchmark::State& state) {
  const std::vector<float> x(int64_t{512} * 2 * 1536, 0.3f);
  std::vector<float> y(int64_t{512} * 1536);
  const Ops& ops = **OpsFor(CpuDevice());
  ThreadPool pool({.num_threads = 1});
  Arena arena;
  ComputeContext c{pool, arena};
  for (auto _ : state) {
    ops.GatedActivation(Activation::kSilu,
                        {reinterpret_cast<const std::byte*>(x.data()), Shape{512, 2 * 1536}},
                        {reinterpret_cast<std::byte*>(y.data()), Shape{512, 1536}}, c);
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(state.iterations() * int64_t{512} * 1536);
}
BENCHMARK(BM_GatedActivation);

}  // namespace
}  // namespace assay
