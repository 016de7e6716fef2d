// The token path asks the heap for nothing after warm-up. This binary replaces operator new to
// count, over all threads, while 8 sequences decode steadily. Excluded, as the engine's header
// says: text longer than a small string, top alternatives, arrivals and ends of requests.
#include <gmock/gmock.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "base/thread_pool.h"
#include "engine/runtime/engine.h"
#include "tests/support/fake_model.h"
#include "tests/support/fake_model_metrics.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/status_matchers.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<int> allocations{0};

void* Allocate(std::size_t size, std::size_t alignment) {
  if (counting.load(std::memory_order_relaxed)) ++allocations;
  void* const p =
      alignment <= alignof(std::max_align_t)
          ? std::malloc(size)
          : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (p == nullptr) std::abort();
  return p;
}
// Not inlined: g++ 12 with sanitizers inlines operator delete and not operator new, and takes this
// free for a mismatched one.
[[gnu::noinline]] void Release(void* p) { std::free(p); }
}  // namespace

void* operator new(std::size_t size) { return Allocate(size, 1); }
void* operator new[](std::size_t size) { return Allocate(size, 1); }
void* operator new(std::size_t size, std::align_val_t a) {
  return Allocate(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a) {
  return Allocate(size, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { Release(p); }
void operator delete[](void* p) noexcept { Release(p); }
void operator delete(void* p, std::size_t) noexcept { Release(p); }
void operator delete[](void* p, std::size_t) noexcept { Release(p); }
void operator delete(void* p, std::align_val_t) noexcept { Release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { Release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { Release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { Release(p); }

namespace assay {
namespace {

struct Counted {
  int allocations = 0, steps = 0, ends = 0;
};

Counted DecodeSteadily(const SamplingParams& sampling) {
  constexpr int kSequences = 8, kWarmUp = 40, kEnd = 160;
  ThreadPool pool({.num_threads = 2});
  Counted counted;
  StepGate arrivals;
  FakeModel::Options model;
  model.before_step = [&](int step, const ForwardBatch&) {
    if (step == 0) arrivals.Pass();
    if (step == kWarmUp) {
      allocations = 0;
      counting = true;
    }
    if (step == kEnd) {
      counting = false;
      counted.allocations = allocations;
      counted.steps = kEnd - kWarmUp;
    }
  };
  auto engine = GenerateEngine::Start(
      std::make_shared<FakeModel>(model),
      std::make_shared<FakeTokenizer>(FakeTokenizer::Letters(64, {})),
      {.max_sequences = kSequences, .max_step_tokens = 32, .prefix_cache = true},
      {pool, RealClock(), std::make_shared<FakeModelMetrics>()});
  EXPECT_OK(engine);
  std::atomic<int> ends{0};
  for (int i = 0; i < kSequences; ++i) {
    GenerateRequest request{.prompt = {i, 2, 3}, .sampling = sampling};
    request.sampling.max_tokens = kEnd + 20;
    EXPECT_OK((*engine)->Submit(std::move(request), [&](TokenEvent&& event) {
      if (event.kind == TokenEvent::Kind::kEnd) ++ends;
    }));
  }
  arrivals.Open();
  (*engine)->Drain();
  counted.ends = ends;
  return counted;
}

TEST(AllocationTest, GreedyDecodingAllocatesNothing) {
  const Counted counted = DecodeSteadily({});
  EXPECT_EQ(counted.steps, 120);
  EXPECT_EQ(counted.ends, 8);
  EXPECT_EQ(counted.allocations, 0);
}

TEST(AllocationTest, SampledDecodingAllocatesNothing) {
  const SamplingParams sampling{.temperature = 1,
                                .top_k = 20,
                                .top_p = 0.9f,
                                .min_p = 0.01f,
                                .repetition_penalty = 1.1f,
                                .frequency_penalty = 0.1f,
                                .seed = 3,
                                .stop = {"never!"}};
  EXPECT_EQ(DecodeSteadily(sampling).allocations, 0);
}

TEST(AllocationTest, TheCounterCounts) {
  EXPECT_GT(DecodeSteadily({.logprobs = 3}).allocations, 0);
}

}  // namespace
}  // namespace assay
