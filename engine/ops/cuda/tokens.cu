#include "base/cuda/simt_math.h"
#include "engine/ops/cuda/tokens.h"

namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 256;

struct Candidate {
  float logit;
  int32_t token;  // -1: none yet
};

ASSAY_DEVICE Candidate Better(Candidate a, Candidate b) {
  if (a.token < 0) return b;
  if (b.token < 0) return a;
  if (a.logit != b.logit) return a.logit > b.logit ? a : b;
  return a.token < b.token ? a : b;
}

// sum exp(logit - top) over a row, by every thread; the same order of sums always.
ASSAY_DEVICE float SumOfExp(const float* logits, int vocab, float top) {
  constexpr float kLog2E = 1.44269504f;
  ASSAY_SHARED(float, sum_of_warp, kWarp);
  float sum = 0;
  for (int token = ThreadIndex(); token < vocab; token += kThreads)
    sum += Exp2((logits[token] - top) * kLog2E);
  for (int mask = kWarp / 2; mask > 0; mask /= 2) sum += ShuffleXor(sum, mask);
  if (ThreadIndex() % kWarp == 0) sum_of_warp[ThreadIndex() / kWarp] = sum;
  SyncThreads();
  float all = 0;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) all += sum_of_warp[warp];
  return all;
}

ASSAY_KERNEL(kThreads) GreedyKernel(GreedyArgs a) {
  ASSAY_SHARED(Candidate, best_of_warp, kWarp);
  const float infinity = FloatOf(0x7f800000u);
  PdlWait();
  const float* const logits = a.logits + static_cast<size_t>(BlockX()) * a.vocab;
  Candidate best = {0, -1};
  bool broken = false;
  for (int token = ThreadIndex(); token < a.vocab; token += kThreads) {
    const float logit = logits[token];
    broken |= !(logit < infinity);  // NaN, too
    if (logit > -infinity) best = Better(best, {logit, token});
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2)
    best = Better(best, {ShuffleXor(best.logit, mask), ShuffleXor(best.token, mask)});
  if (Ballot(broken) != 0) best.token = -2;
  if (ThreadIndex() % kWarp == 0) best_of_warp[ThreadIndex() / kWarp] = best;
  SyncThreads();
  best = {0, -1};
  bool whole = true;
  for (int warp = 0; warp < kThreads / kWarp; ++warp) {
    whole &= best_of_warp[warp].token != -2;
    best = Better(best, best_of_warp[warp]);
  }
  if (!whole) best.token = -1;
  if (ThreadIndex() == 0) a.tokens[BlockX()] = best.token;
  if (a.logprobs == nullptr) return;
  const float sum = SumOfExp(logits, a.vocab, best.logit);
  if (ThreadIndex() == 0) a.logprobs[BlockX()] = best.token < 0 ? 0 : -Log2(sum) * 0.693147181f;
}

}  // namespace

int Greedy(const GreedyArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return 0;
  return Launch({.x = args.rows, .threads = kThreads}, context, GreedyKernel, args);
}

}  // namespace assay::ASSAY_SIMT
