// Both attentions of every variant against a naive float64 softmax, over awkward shapes; and
// bit-exact independence from chunking, batching and block numbers.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "base/float16.h"
#include "tests/engine/ops/variants.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

struct Problem {
  int heads, kv_heads, head_dim;
  int window = 0;
  DType dtype = DType::kF32;
  bool keys = false;  // means and scales of channels
  bool int8_scores = false;
  int recent = 0, sinks = 0;  // in 16 bit, beside codes
};
std::string Describe(const Problem& p) {
  return "heads=" + std::to_string(p.heads) + " kv_heads=" + std::to_string(p.kv_heads) +
         " head_dim=" + std::to_string(p.head_dim) + " window=" + std::to_string(p.window) + " " +
         std::string(Name(p.dtype)) + (p.keys ? " keys" : "") +
         (p.int8_scores ? " int8_scores" : "") + " recent=" + std::to_string(p.recent) +
         " sinks=" + std::to_string(p.sinks);
}
const Problem kProblems[] = {
    {3, 1, 64},
    {9, 3, 64, 0, DType::kF16},
    {8, 4, 8},
    {4, 4, 32, 0, DType::kF16},
    {2, 1, 12},                    // head_dim no multiple of 8
    {5, 1, 100, 7, DType::kF16},   // nor here; window inside a chunk
    {6, 2, 16, 33},                // window across tiles
    {2, 2, 80, 1, DType::kF16},    // a row sees itself alone
    {64, 1, 128, 0, DType::kF16},  // a group larger than a tile: split
    {1, 1, 256, 70},
    {3, 1, 512, 0, DType::kF16},
    {9, 3, 64, 0, DType::kI8},
    {5, 1, 100, 7, DType::kI8},
    {64, 1, 128, 0, DType::kI8},
    {9, 3, 64, 0, DType::kU4},
    {3, 3, 27, 33, DType::kU4},  // an odd number of nibbles
    {9, 3, 64, 0, DType::kU4, true},
    {5, 1, 100, 7, DType::kI8, true},
    {9, 3, 64, 0, DType::kI8, true, true},
    {5, 1, 100, 7, DType::kI8, false, true},
    {2, 2, 12, 33, DType::kI8, true, true},  // shorter than one vector of codes
    {64, 1, 128, 0, DType::kI8, true, true},
    {9, 3, 64, 0, DType::kU4, false, false, 64, 4},
    {9, 3, 64, 0, DType::kU4, true, false, 33, 1},
    {4, 2, 32, 0, DType::kU4, true, false, 1, 0},     // a row itself
    {3, 1, 27, 0, DType::kU4, true, false, 5, 20},    // first, coded and near keys in one chunk
    {4, 2, 16, 0, DType::kU4, true, false, 0, 3},     // no window
    {2, 1, 12, 0, DType::kI8, true, true, 18, 2},     // INT8 scores of codes alone
    {5, 1, 100, 40, DType::kI8, false, false, 7, 9},  // a sliding window that leaves the first out
    {64, 1, 16, 0, DType::kU4, false, false, 16, 1},
    {2, 2, 8, 0, DType::kU4, false, false, 500, 0},  // nothing is read as codes
};

// What calibration may have found for layer 1 of 2; the other layer's would spoil everything.
std::shared_ptr<const KvKeys> KeysOf(const Problem& p) {
  if (!p.keys && !p.int8_scores) return nullptr;
  const size_t width = static_cast<size_t>(p.kv_heads) * p.head_dim;
  auto keys = std::make_shared<KvKeys>();
  keys->mean.assign(2 * width, p.keys ? 1e6f : 0.0f);
  keys->scale.assign(2 * width, p.keys ? 1e6f : 1.0f);
  for (size_t i = 0; p.keys && i < width; ++i) {
    keys->mean[width + i] = 0.1f * static_cast<float>(i % 7) - 0.3f;
    keys->scale[width + i] = 0.5f + 0.25f * static_cast<float>(i % 5);
  }
  for (const float scale : keys->scale) keys->inverse_scale.push_back(1.0f / scale);
  keys->int8_scores = {0, p.int8_scores ? uint8_t{1} : uint8_t{0}};
  return keys;
}

// One sequence: q, k, v for all its positions; q rows hold q | k | v side by side, as a fused
// projection gives them.
struct Sequence {
  int length = 0;
  std::vector<float> qkv;
};
int64_t Stride(const Problem& p) { return int64_t{p.heads + 2 * p.kv_heads} * p.head_dim; }
Sequence MakeSequence(const Problem& p, int length, uint64_t seed) {
  return {length, RandomNormal(length * Stride(p), seed)};
}

// Whether a query at `position` reads key and value `at` in 16 bit although the pool holds codes.
bool InHalves(const Problem& p, int at, int position) {
  return at < p.sinks || at + p.recent > position;
}

// A row of K or V as the cache gives it back, in 16 bit or as it is stored; as it is where there is
// no cache. The integer rows' own rounding is tested in kv_pool_test.cc; here they are taken as the
// kernels' input.
std::vector<float> CachedRow(const Problem& p, const Sequence& s, int at, int column, bool causal,
                             bool half, const KvKeys* keys) {
  const int d = p.head_dim;
  const float* from = s.qkv.data() + at * Stride(p) + column;
  std::vector<float> row(from, from + d), smoothed = row;
  const int kv_head = column / d - p.heads;
  if (keys != nullptr && p.keys && kv_head < p.kv_heads) {
    const size_t channel = static_cast<size_t>(p.kv_heads + kv_head) * d;
    for (int i = 0; i < d; ++i)
      smoothed[i] = (row[i] - keys->mean[channel + i]) * keys->inverse_scale[channel + i];
  }
  std::vector<std::byte> stored(static_cast<size_t>(KvRowBytes(p.dtype, d)));
  if (!causal) return row;
  if (p.dtype == DType::kF16 || half) {
    if (half) row = smoothed;
    for (float& v : row) v = F16ToF32(F32ToF16(v));
  } else if (p.dtype == DType::kI8) {
    EncodeKvI8(smoothed.data(), d, stored.data());
    DecodeKvI8(stored.data(), d, row.data());
  } else if (p.dtype == DType::kU4) {
    EncodeKvU4(smoothed.data(), d, stored.data());
    DecodeKvU4(stored.data(), d, row.data());
  }
  return row;
}

// softmax(scale q K^T) V of one row and head in float64; keys and values rounded as the cache does.
std::vector<double> Exact(const Problem& p, const Sequence& s, int row, int head, bool causal) {
  const int d = p.head_dim, group = p.heads / p.kv_heads;
  const int last = causal ? row : s.length - 1;
  const int first = causal && p.window > 0 ? std::max(0, row + 1 - p.window) : 0;
  const std::shared_ptr<const KvKeys> keys = causal ? KeysOf(p) : nullptr;
  const auto cached_row = [&](int at, int column) {
    const bool half = causal && InHalves(p, at, row);
    return CachedRow(p, s, at, column, causal, half, keys.get());
  };
  const int k = (p.heads + head / group) * d, v = k + p.kv_heads * d;
  const size_t channel = static_cast<size_t>(p.kv_heads + head / group) * d;  // of layer 1
  std::vector<float> query(s.qkv.begin() + row * Stride(p) + head * d,
                           s.qkv.begin() + row * Stride(p) + (head + 1) * d);
  for (float& q : query) q *= 1.0f / std::sqrt(static_cast<float>(d));
  for (int i = 0; keys != nullptr && i < d; ++i) query[i] *= keys->scale[channel + i];
  std::vector<float> coded = query;
  if (p.int8_scores && causal) {
    std::vector<std::byte> stored(static_cast<size_t>(KvRowBytes(DType::kI8, d)));
    EncodeKvI8(query.data(), d, stored.data());
    DecodeKvI8(stored.data(), d, coded.data());
  }
  std::vector<double> scores;
  for (int j = first; j <= last; ++j) {
    double dot = 0;
    const std::vector<float> key = cached_row(j, k);
    const std::vector<float>& q = InHalves(p, j, row) ? query : coded;
    for (int i = 0; i < d; ++i) dot += double{q[i]} * key[i];
    scores.push_back(dot);
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  std::vector<double> out(d);
  for (int j = first; j <= last; ++j) {
    const double weight = std::exp(scores[j - first] - top);
    sum += weight;
    const std::vector<float> value = cached_row(j, v);
    for (int i = 0; i < d; ++i) out[i] += weight * value[i];
  }
  for (double& o : out) o /= sum;
  return out;
}

// A score is a sum of d products of unit normals, scaled to unit variance: |s| < 8 over these
// sizes, so its error is below (d / 8 + 4) eps 8; e^s turns that into a relative error of the
// weights, and |v| < 6 bounds the effect on a weighted mean. The sums over n keys add n eps 6,
// though in practice sqrt(n) of it.
double Tolerance(const Problem& p, int keys) {
  return 6 * ((p.head_dim / 8.0 + 4) * 8 + keys + 10) * std::numeric_limits<float>::epsilon();
}

AttentionArgs Args(const Problem& p, const float* qkv, MutableView y) {
  return {.q = {qkv, Stride(p)},
          .heads = p.heads,
          .kv_heads = p.kv_heads,
          .head_dim = p.head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(p.head_dim)),
          .sliding_window = p.window,
          .y = y};
}

class AttentionTest : public OpsVariant {
 protected:
  StridedRows Keys(const Problem& p, const float* qkv) const {
    return {qkv + p.heads * p.head_dim, Stride(p)};
  }
  StridedRows Values(const Problem& p, const float* qkv) const {
    return {qkv + (p.heads + p.kv_heads) * p.head_dim, Stride(p)};
  }

  // Positions [start, start + rows) of each sequence in one batch over `kv`, which holds what came
  // before. Returns y [all rows, heads * head_dim].
  struct Chunk {
    const Sequence* sequence;
    int start, rows;
    std::span<const int32_t> blocks;
    int slot = 0;
  };
  std::vector<float> Paged(const Problem& p, const std::vector<Chunk>& chunks, KvPool& kv) {
    std::vector<float> qkv;
    std::vector<SequenceSpan> spans;
    int rows = 0;
    for (const Chunk& c : chunks) {
      spans.push_back({.first_row = rows,
                       .num_rows = c.rows,
                       .start_position = c.start,
                       .blocks = c.blocks,
                       .slot = c.slot});
      const auto begin = c.sequence->qkv.begin() + c.start * Stride(p);
      qkv.insert(qkv.end(), begin, begin + c.rows * Stride(p));
      rows += c.rows;
    }
    const std::vector<int32_t> tokens(rows);
    const ForwardBatch batch{.tokens = tokens, .sequences = spans};
    std::vector<float> y(int64_t{rows} * p.heads * p.head_dim, NAN);
    ops.StoreKv(Keys(p, qkv.data()), Values(p, qkv.data()), batch, 1, kv, context);
    AttentionArgs args = Args(p, qkv.data(), ViewOf(y, {rows, p.heads * p.head_dim}));
    args.k = Keys(p, qkv.data());
    args.v = Values(p, qkv.data());
    ops.PagedAttention(args, batch, 1, kv, context);
    ops.StoreRecent(args.k, args.v, batch, 1, kv, context);
    return y;
  }

  static constexpr int kSlots = 3;
  // A pool full of NaN: whatever is read without having been written shows.
  static KvPool PoisonedPool(const Problem& p, int blocks) {
    const KvPool::Layout layout = {2,         p.kv_heads, p.head_dim, p.dtype,
                                   KeysOf(p), p.recent,   p.sinks};
    KvPool kv = *KvPool::Create(CpuDevice(), layout, blocks, kSlots);
    std::fill_n(kv.keys(0, 0, 0), blocks * layout.block_bytes(), std::byte{0xff});
    if (layout.has_slots())
      std::fill_n(kv.slot_keys(0, 0, 0), kSlots * layout.slot_bytes() / 2, uint16_t{0xffff});
    return kv;
  }

  double WorstError(const Problem& p, const Sequence& s, const float* y, bool causal) {
    double worst = 0;
    for (int row = 0; row < s.length; ++row) {
      for (int head = 0; head < p.heads; ++head) {
        const std::vector<double> want = Exact(p, s, row, head, causal);
        for (int i = 0; i < p.head_dim; ++i) {
          const double got = y[(row * p.heads + head) * p.head_dim + i];
          worst = std::max(worst, std::isnan(got) ? 1e9 : std::abs(got - want[i]));
        }
      }
    }
    return worst;
  }
};
ASSAY_OPS_VARIANTS(AttentionTest);

const int32_t kBlocksA[] = {7, 2, 9, 4, 0, 11, 5, 1, 14}, kBlocksB[] = {3, 12, 6, 13, 8, 10};

TEST_P(AttentionTest, PagedMatchesFloat64) {
  for (const Problem& p : kProblems) {
    SCOPED_TRACE(Describe(p));
    for (const int length : {1, 15, 16, 17, 63, 65, 131}) {
      const Sequence s = MakeSequence(p, length, length);
      KvPool kv = PoisonedPool(p, 15);
      const auto y = Paged(p, {{&s, 0, length, kBlocksA}}, kv);
      EXPECT_LT(WorstError(p, s, y.data(), true), Tolerance(p, length)) << "length=" << length;
    }
  }
}

TEST_P(AttentionTest, PagedDetectsAWindowThatIsOneTooLong) {
  Problem p{6, 2, 16, 33};
  const Sequence s = MakeSequence(p, 70, 1);
  KvPool kv = PoisonedPool(p, 15);
  const auto y = Paged(p, {{&s, 0, 70, kBlocksA}}, kv);
  p.window = 34;
  EXPECT_GT(WorstError(p, s, y.data(), true), 100 * Tolerance(p, 70));
}

// Sibling: as are the limits of what is read in 16 bit. Codes of 4 bits leave errors of about
// absmax / 30 in every row.
TEST_P(AttentionTest, PagedDetectsAWindowInSixteenBitsThatIsOneOff) {
  for (const bool sinks : {false, true}) {
    for (const int off : {-1, 1}) {
      Problem p{6, 2, 16, 0, DType::kU4, true, false, 33, 4};
      const Sequence s = MakeSequence(p, 70, 1);
      KvPool kv = PoisonedPool(p, 15);
      const auto y = Paged(p, {{&s, 0, 70, kBlocksA}}, kv);
      EXPECT_LT(WorstError(p, s, y.data(), true), Tolerance(p, 70));
      (sinks ? p.sinks : p.recent) += off;
      EXPECT_GT(WorstError(p, s, y.data(), true), 20 * Tolerance(p, 70));
    }
  }
}

// What a later batch reads in 16 bit comes from its own sequence's slot: NaN where nobody stored
// it.
TEST_P(AttentionTest, PagedReadsEarlierRowsFromTheSlotOfTheSequence) {
  const Problem p{6, 2, 16, 0, DType::kU4, true, false, 33, 4};
  const Sequence s = MakeSequence(p, 70, 1);
  for (const int slot : {1, 2}) {
    KvPool kv = PoisonedPool(p, 15);
    (void)Paged(p, {{&s, 0, 69, kBlocksA, 1}}, kv);
    const auto y = Paged(p, {{&s, 69, 1, kBlocksA, slot}}, kv);
    EXPECT_EQ(std::isnan(y[0]), slot == 2);
  }
}

// Sibling: the comparison sees scales that are not those the keys went in with.
TEST_P(AttentionTest, PagedDetectsKeysOfAnotherLayer) {
  for (const bool int8_scores : {false, true}) {
    const Problem p{6, 2, 16, 0, DType::kI8, true, int8_scores};
    const Sequence s = MakeSequence(p, 70, 1);
    KvPool::Layout layout = {2, p.kv_heads, p.head_dim, p.dtype};
    KvKeys keys = *KeysOf(p);
    // The keys go in with layer 1's scales and are read with scales that are not its own.
    layout.keys = std::make_shared<const KvKeys>(keys);
    std::rotate(keys.scale.begin(), keys.scale.begin() + 1, keys.scale.end());
    KvPool stored = *KvPool::Create(CpuDevice(), layout, 15);
    layout.keys = std::make_shared<const KvKeys>(keys);
    KvPool read = *KvPool::Create(CpuDevice(), layout, 15);
    (void)Paged(p, {{&s, 0, 70, kBlocksA}}, stored);
    const std::vector<int32_t> tokens(70);
    const SequenceSpan span[] = {{.first_row = 0, .num_rows = 70, .blocks = kBlocksA}};
    std::vector<float> y(int64_t{70} * p.heads * p.head_dim, NAN);
    std::copy_n(stored.keys(0, 0, 0), stored.bytes(), read.keys(0, 0, 0));
    ops.PagedAttention(Args(p, s.qkv.data(), ViewOf(y, {70, p.heads * p.head_dim})),
                       {.tokens = tokens, .sequences = span}, 1, read, context);
    EXPECT_GT(WorstError(p, s, y.data(), true), 100 * Tolerance(p, 70));
  }
}

TEST_P(AttentionTest, PagedIsTheSameBitForBitHoweverRowsAreChunkedAndBatched) {
  for (const Problem& p : kProblems) {
    SCOPED_TRACE(Describe(p));
    const Sequence a = MakeSequence(p, 134, 1), b = MakeSequence(p, 81, 2);
    const int64_t width = int64_t{p.heads} * p.head_dim;
    KvPool alone_kv = PoisonedPool(p, 15), kv = PoisonedPool(p, 15);
    const auto whole = Paged(p, {{&a, 0, a.length, kBlocksA}}, alone_kv);
    std::vector<float> chunked;
    const auto take = [&](const std::vector<float>& y, int rows) {
      chunked.insert(chunked.end(), y.begin(), y.begin() + rows * width);
    };
    // Ragged batches with another sequence, chunks that end inside blocks and tiles, single steps,
    // and other block numbers than in `whole`.
    take(Paged(p, {{&a, 0, 9, kBlocksB, 2}}, kv), 9);  // kBlocksB has room for 96 rows only
    take(Paged(p, {{&a, 9, 40, kBlocksB, 2}, {&b, 0, 80, kBlocksA, 1}}, kv), 40);
    take(Paged(p, {{&a, 49, 1, kBlocksB, 2}, {&b, 80, 1, kBlocksA, 1}}, kv), 1);
    take(Paged(p, {{&a, 50, 1, kBlocksB, 2}}, kv), 1);
    take(Paged(p, {{&a, 51, 45, kBlocksB, 2}}, kv), 45);
    ASSERT_EQ(chunked.size(), 96u * width);
    EXPECT_TRUE(std::equal(chunked.begin(), chunked.end(), whole.begin()));
  }
}

TEST_P(AttentionTest, LargeScoresDoNotOverflow) {
  const Problem p{2, 1, 16};
  Sequence s = MakeSequence(p, 100, 5);
  for (float& x : s.qkv) x *= 60;  // scores up to about 20 000
  KvPool kv = PoisonedPool(p, 15);
  const auto y = Paged(p, {{&s, 0, 100, kBlocksA}}, kv);
  // Errors of the scores grow with them (3600 x), and so does their effect on the weights; values
  // are 60 times as large.
  EXPECT_LT(WorstError(p, s, y.data(), true), 3600 * 60 * Tolerance(p, 100));
  for (const float v : y) ASSERT_TRUE(std::isfinite(v));
}

TEST_P(AttentionTest, ANanKeyReachesTheRowsThatSeeItAndNoOther) {
  const Problem p{2, 1, 16};
  Sequence s = MakeSequence(p, 30, 6);
  s.qkv[20 * Stride(p) + p.heads * p.head_dim] = NAN;
  KvPool kv = PoisonedPool(p, 15);
  // Row by row, as decode does.
  for (int row = 0; row < s.length; ++row) {
    const auto y = Paged(p, {{&s, row, 1, kBlocksA}}, kv);
    EXPECT_EQ(std::isnan(y[0]), row >= 20) << row;
  }
}

TEST_P(AttentionTest, SelfAttentionMatchesFloat64InARaggedBatch) {
  for (Problem p : kProblems) {
    if (p.window != 0) continue;
    SCOPED_TRACE(Describe(p));
    std::vector<Sequence> sequences;
    std::vector<SequenceSpan> spans;
    std::vector<float> qkv;
    int rows = 0;
    for (const int length : {1, 16, 5, 70, 129, 2}) {
      sequences.push_back(MakeSequence(p, length, 100 + length));
      spans.push_back({.first_row = rows, .num_rows = length});
      qkv.insert(qkv.end(), sequences.back().qkv.begin(), sequences.back().qkv.end());
      rows += length;
    }
    qkv.shrink_to_fit();  // so that a sanitizer sees a read past the last row
    const std::vector<int32_t> tokens(rows);
    std::vector<float> y(int64_t{rows} * p.heads * p.head_dim, NAN);
    ops.SelfAttention(Args(p, qkv.data(), ViewOf(y, {rows, p.heads * p.head_dim})),
                      Keys(p, qkv.data()), Values(p, qkv.data()),
                      {.tokens = tokens, .sequences = spans}, context);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const float* mine = y.data() + int64_t{spans[i].first_row} * p.heads * p.head_dim;
      EXPECT_LT(WorstError(p, sequences[i], mine, false), Tolerance(p, sequences[i].length));
      std::vector<float> alone(int64_t{spans[i].num_rows} * p.heads * p.head_dim, NAN);
      const SequenceSpan span[] = {{.first_row = 0, .num_rows = spans[i].num_rows}};
      const float* own = sequences[i].qkv.data();
      ops.SelfAttention(Args(p, own, ViewOf(alone, {spans[i].num_rows, p.heads * p.head_dim})),
                        Keys(p, own), Values(p, own),
                        {.tokens = std::span(tokens).first(spans[i].num_rows), .sequences = span},
                        context);
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), mine)) << "depends on its neighbours";
    }
  }
}

}  // namespace
}  // namespace assay
