// A forward pass asks the heap for nothing. This binary replaces operator new to count.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>

#include "base/cpu_info.h"
#include "base/thread_pool.h"
#include "engine/model/model.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace {
std::atomic<int> g_allocations{0};
std::atomic<bool> g_counting{false};

void* Allocate(std::size_t size) {
  if (g_counting.load()) g_allocations.fetch_add(1);
  void* p = std::malloc(size == 0 ? 1 : size);
  if (p == nullptr) std::abort();
  return p;
}
}  // namespace

void* operator new(std::size_t size) { return Allocate(size); }
void* operator new[](std::size_t size) { return Allocate(size); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

namespace assay {
namespace {

// Allocations of the second pass over `rows` tokens (what a kernel sets up once is warm-up).
int CountAllocations(const Model& model, int rows) {
  std::vector<int32_t> tokens(rows, 5), blocks(4), logit_rows;
  std::iota(blocks.begin(), blocks.end(), 0);
  const bool decoder = model.spec().task == ModelTask::kGenerate;
  if (decoder) logit_rows = {rows - 1};
  const SequenceSpan span[] = {{.first_row = 0, .num_rows = rows, .blocks = blocks}};
  const ForwardBatch batch{.tokens = tokens, .sequences = span, .logit_rows = logit_rows};
  ThreadPool pool({.num_threads = 2});
  Arena arena = *Arena::Create(CpuDevice(), model.scratch_bytes(rows, 1, rows));
  ComputeContext context{pool, arena};
  const KvPool::Layout layout =
      decoder ? model.kv_layout(DType::kF16) : KvPool::Layout{1, 1, 8, DType::kF16};
  KvPool kv = *KvPool::Create(CpuDevice(), layout, 4);
  const int64_t width = decoder                                     ? model.spec().vocab
                        : model.spec().task == ModelTask::kClassify ? model.spec().num_labels
                                                                    : model.spec().hidden;
  std::vector<float> out(width);
  const ForwardArgs args{.batch = batch,
                         .kv = &kv,
                         .out = {reinterpret_cast<std::byte*>(out.data()), Shape{1, width},
                                 DType::kF32, &CpuDevice()}};
  EXPECT_OK(model.Forward(args, context));
  g_allocations = 0;
  g_counting = true;
  const absl::Status status = model.Forward(args, context);
  g_counting = false;
  EXPECT_OK(status);
  return g_allocations;
}

// oneDNN (VNNI, AMX) asks the heap inside its primitives, which is out of our hands: the kernels of
// our own are pinned.
TEST(FamilyAllocationTest, ForwardAsksTheHeapForNothing) {
  for (const char* name : {"qwen3", "qwen2", "bert_mean", "roberta_classifier"}) {
    auto checkpoint = OpenCheckpoint(GoldenPath(std::string("models/") + name));
    ASSERT_OK(checkpoint);
    for (const auto& [scheme, mode] : {std::pair{"f32", ActivationMode::kA16},
                                       {"bf16", ActivationMode::kA16},
                                       {"int8_channel", ActivationMode::kA8Token}}) {
      const bool integers = mode == ActivationMode::kA8Token && HostCpu().avx2;
      const auto model = BuildUniform(
          **checkpoint, scheme,
          {.activation = mode, .kernel = integers ? std::string("avx2_int8") : std::string()});
      ASSERT_OK(model);
      for (const int rows : {1, 5, 40}) {
        EXPECT_EQ(CountAllocations(**model, rows), 0) << name << " " << scheme << " rows=" << rows;
      }
    }
  }
}

TEST(FamilyAllocationTest, TheCounterCounts) {
  g_allocations = 0;
  g_counting = true;
  const auto p = std::make_unique<std::vector<int>>(3);
  g_counting = false;
  EXPECT_EQ(g_allocations, 2) << p->size();
}

}  // namespace
}  // namespace assay
