#include "base/cuda/simt_math.h"
#include "engine/ops/cuda/top_candidates.h"

// One block per row. A logit and its token make one number, its place, that orders as the ranking
// does; no two are equal, so that what is selected does not depend on the order of threads:
//   1. every thread takes the largest place of its share; the largest of all is the row's first;
//   2. the kMostCandidates-th of the threads' largest is a bound that at least so many places
//      reach, and about 360 of any vocabulary if logits lie in no order: those go to a pool;
//   3. should the pool overflow (hundreds of large logits in each of a few shares), the
//      kMostCandidates-th place of the row is found digit by digit, and the pool is filled again
//      from there;
//   4. whoever is in the pool counts how many there are before him: that is where he goes.
namespace assay::ASSAY_SIMT {
namespace {

constexpr int kThreads = 512;  // at least kMostCandidates: step 2
constexpr int kWarps = kThreads / kWarp;
constexpr int kPool = 1024;
static_assert(kThreads >= kMostCandidates && kPool >= kMostCandidates);

using Place = unsigned long long;

ASSAY_DEVICE Place PlaceOf(float logit, int token) {
  const uint32_t bits = logit == 0 ? 0 : BitsOf(logit);  // zeros of both signs are equal
  const uint32_t ascending = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return (static_cast<Place>(ascending) << 32) | (0xffffffffu - static_cast<uint32_t>(token));
}
ASSAY_DEVICE float LogitAt(Place place) {
  const auto ascending = static_cast<uint32_t>(place >> 32);
  return FloatOf((ascending >> 31) != 0 ? ascending & 0x7fffffffu : ~ascending);
}
ASSAY_DEVICE RankedLogit RankedAt(Place place) {
  RankedLogit ranked;
  ranked.logit = LogitAt(place);
  ranked.token = static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(place));
  return ranked;
}

// e^((logit - max) scale), 0 where that is below e^-87: Weigher of engine/runtime/weigher.h, which
// says what this is, step by step.
ASSAY_DEVICE float Weight(float logit, float max, float scale) {
  constexpr float kShift = 12582912.0f;
  const float x = (logit - max) * scale;
  if (x < -87.0f) return 0;
  const float shifted = x * 1.44269504088896341f + kShift;
  const float n = shifted - kShift;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * FloatOf((BitsOf(shifted) - BitsOf(kShift) + 127u) << 23);
}

// The sum that TotalWeight of engine/runtime/sampler.cc makes, in its order: kSumBlock logits in
// four float lanes, the lanes and then the blocks in double. Of thread 0 alone.
ASSAY_DEVICE double TotalWeight(const float* logits, int vocab, float max, float scale) {
  constexpr int kSumBlock = 256, kLanes = 4, kAtOnce = kThreads / kLanes;
  ASSAY_SHARED(double, of_block, kAtOnce);
  const int lane = ThreadIndex() % kLanes, first_lane = ThreadIndex() % kWarp - lane;
  double total = 0;
  for (int first = 0; first < vocab; first += kAtOnce * kSumBlock) {
    const int begin = first + ThreadIndex() / kLanes * kSumBlock;
    const int count = begin >= vocab ? 0 : vocab - begin <= kSumBlock ? vocab - begin : kSumBlock;
    const int whole = count / kLanes * kLanes;
    float sum = 0;
    ASSAY_UNROLL_BY(8)
    for (int i = lane; i < whole; i += kLanes) sum += Weight(logits[begin + i], max, scale);
    for (int i = whole; lane == 0 && i < count; ++i) sum += Weight(logits[begin + i], max, scale);
    double block = Shuffle(sum, first_lane);
    for (int i = 1; i < kLanes; ++i) block += Shuffle(sum, first_lane + i);
    if (lane == 0) of_block[ThreadIndex() / kLanes] = block;
    SyncThreads();
    for (int i = 0; ThreadIndex() == 0 && i < kAtOnce; ++i) total += of_block[i];
    SyncThreads();
  }
  return total;
}

// Largest place of this thread's share; every thread learns the row's largest, 0 if it is broken.
ASSAY_DEVICE Place First(const float* logits, int vocab, Place* own) {
  ASSAY_SHARED(Place, of_warp, kWarps);
  const float infinity = FloatOf(0x7f800000u);
  Place most = 0;
  bool broken = false;
  ASSAY_UNROLL_BY(8)
  for (int token = ThreadIndex(); token < vocab; token += kThreads) {
    const float logit = logits[token];
    broken |= !(logit < infinity);  // NaN, too
    const Place place = PlaceOf(logit, token);
    most = place > most ? place : most;
  }
  *own = most;
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const Place other = ShuffleXor(most, mask);
    most = other > most ? other : most;
  }
  constexpr Place kBroken = ~Place{0};  // no place but a NaN's
  if (Ballot(broken) != 0) most = kBroken;
  if (ThreadIndex() % kWarp == 0) of_warp[ThreadIndex() / kWarp] = most;
  SyncThreads();
  most = of_warp[0];
  for (int warp = 1; warp < kWarps; ++warp) most = of_warp[warp] > most ? of_warp[warp] : most;
  return most == kBroken || LogitAt(most) == -infinity ? 0 : most;
}

// The kMostCandidates-th of the threads' largest places; 0 if so many threads have none.
ASSAY_DEVICE Place Bound(Place own) {
  ASSAY_SHARED(Place, of_thread, kThreads);
  ASSAY_SHARED(Place, bound, 1);
  of_thread[ThreadIndex()] = own;
  if (ThreadIndex() == 0) *bound = 0;
  SyncThreads();
  int before = 0;
  for (int thread = 0; thread < kThreads; ++thread) before += of_thread[thread] > own ? 1 : 0;
  if (before == kMostCandidates - 1 && own != 0) *bound = own;  // one thread at most
  SyncThreads();
  return *bound;
}

// The kMostCandidates-th place of the row, eight bits at a time. REQUIRES: there are so many.
ASSAY_DEVICE Place BoundByDigits(const float* logits, int vocab) {
  constexpr int kDigits = 256;
  ASSAY_SHARED(int, count, kDigits);
  Place found = 0;  // the digits above `shift`
  int left = kMostCandidates;
  for (int shift = 56; shift >= 0; shift -= 8) {
    if (ThreadIndex() < kDigits) count[ThreadIndex()] = 0;
    SyncThreads();
    for (int token = ThreadIndex(); token < vocab; token += kThreads) {
      const Place place = PlaceOf(logits[token], token);
      if ((place >> shift >> 8) != (found >> shift >> 8)) continue;
      AtomicAdd(&count[static_cast<int>((place >> shift) % kDigits)], 1);
    }
    SyncThreads();
    int digit = kDigits - 1;
    for (; count[digit] < left; --digit) left -= count[digit];
    found |= static_cast<Place>(digit) << shift;
    SyncThreads();
  }
  return found;
}

// All places from `bound` on into the pool, in any order, as far as there is room. How many there
// are.
ASSAY_DEVICE int Collect(const float* logits, int vocab, Place bound, Place* pool) {
  ASSAY_SHARED(int, count, 1);
  SyncThreads();  // whoever still reads the last count
  if (ThreadIndex() == 0) *count = 0;
  SyncThreads();
  ASSAY_UNROLL_BY(8)
  for (int token = ThreadIndex(); token < vocab; token += kThreads) {
    const Place place = PlaceOf(logits[token], token);
    if (place < bound) continue;
    const int at = AtomicAdd(count, 1);
    if (at < kPool) pool[at] = place;
  }
  SyncThreads();
  return *count;
}

ASSAY_KERNEL(kThreads) TopCandidatesKernel(TopCandidatesArgs a) {
  ASSAY_SHARED(Place, pool, kPool);
  PdlWait();
  const int row = BlockX(), wanted = a.wanted[row];
  if (wanted == 0) return;
  const float* const logits = a.logits + static_cast<size_t>(row) * a.vocab;
  Place own;
  const Place first = First(logits, a.vocab, &own);
  RowHead head;
  if (first == 0) {
    head.first.token = -1;
    if (ThreadIndex() == 0) a.heads[row] = head;
    return;
  }
  const float max = LogitAt(first), scale = a.scales[row];
  head.first = RankedAt(first);
  head.sums.plain = head.sums.scaled = TotalWeight(logits, a.vocab, max, 1.0f);
  if (scale != 1) head.sums.scaled = TotalWeight(logits, a.vocab, max, scale);
  if (ThreadIndex() == 0) a.heads[row] = head;
  if (wanted == 1) return;
  int count = Collect(logits, a.vocab, Bound(own), pool);
  if (count > kPool) count = Collect(logits, a.vocab, BoundByDigits(logits, a.vocab), pool);
  for (int i = ThreadIndex(); i < count; i += kThreads) {
    const Place mine = pool[i];
    int before = 0;
    for (int other = 0; other < count; ++other) before += pool[other] > mine ? 1 : 0;
    if (before < kMostCandidates)
      a.ranked[static_cast<size_t>(row) * kMostCandidates + before] = RankedAt(mine);
  }
}

}  // namespace

int TopCandidates(const TopCandidatesArgs& args, const LaunchContext& context) {
  if (args.rows == 0) return 0;
  return Launch({.x = args.rows, .threads = kThreads}, context, TopCandidatesKernel, args);
}

}  // namespace assay::ASSAY_SIMT
