#include "engine/ops/kv_pool.h"

#include <algorithm>
#include <cmath>

#include "base/float16.h"
#include "tests/engine/ops/variants.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

TEST(KvPoolTest, RefusesLayoutsItCannotHold) {
  EXPECT_THAT(KvPool::Create(CpuDevice(), {.layers = 0, .kv_heads = 1, .head_dim = 8}, 4),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layers=0")));
  EXPECT_THAT(KvPool::Create(CpuDevice(), {.layers = 1, .kv_heads = 1, .head_dim = 8}, 0),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("blocks=0")));
  EXPECT_THAT(KvPool::Create(CpuDevice(),
                             {.layers = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::kBf16}, 4),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("dtype=bf16")));
}

TEST(KvPoolTest, RefusesKeysOfAnotherModel) {
  auto keys = std::make_shared<KvKeys>();
  keys->mean = keys->scale = keys->inverse_scale = std::vector<float>(7, 1.0f);
  keys->int8_scores = {0};
  EXPECT_THAT(KvPool::Create(CpuDevice(), {1, 1, 8, DType::kI8, keys}, 4),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("means=7 expected=8")));
}

TEST(KvPoolTest, RowsInSixteenBitLieInSlotsBesideCodes) {
  KvPool::Layout layout{.layers = 3, .kv_heads = 2, .head_dim = 10, .dtype = DType::kU4};
  layout.window = 7;
  layout.sinks = 2;
  ASSERT_OK_AND_ASSIGN(KvPool kv, KvPool::Create(CpuDevice(), layout, 5, 4));
  EXPECT_EQ(layout.slot_bytes(), 2u * 3 * 2 * (7 + 2) * 10 * 2);
  EXPECT_EQ(kv.bytes(), 5 * layout.block_bytes() + 4 * layout.slot_bytes());
  EXPECT_EQ(kv.slot_values(2, 3, 1) + (7 + 2) * 10,
            kv.slot_keys(0, 0, 0) + 4 * layout.slot_bytes() / sizeof(uint16_t));
  EXPECT_THAT(KvPool::Create(CpuDevice(), layout, 5),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("slots=0")));
  layout.dtype = DType::kF16;
  EXPECT_THAT(KvPool::Create(CpuDevice(), layout, 5, 4),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("dtype=f16")));
}

TEST(KvPoolTest, RefusesMoreThanTheHostHas) {
  EXPECT_THAT(KvPool::Create(CpuDevice(), {.layers = 1 << 10, .kv_heads = 1 << 10, .head_dim = 512},
                             1 << 24),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("bytes=")));
}

TEST(KvPoolTest, BlocksAreAsLargeAsTheLayoutSays) {
  const KvPool::Layout layout{.layers = 3, .kv_heads = 2, .head_dim = 10};
  ASSERT_OK_AND_ASSIGN(KvPool kv, KvPool::Create(CpuDevice(), layout, 5));
  EXPECT_EQ(layout.block_bytes(), 2u * 3 * 2 * 16 * 10 * 2);
  EXPECT_EQ(kv.bytes(), 5 * layout.block_bytes());
  EXPECT_EQ(kv.values(2, 4, 1) + 16 * 10 * 2, kv.keys(0, 0, 0) + kv.bytes());
}

TEST(KvPoolTest, IntegersHalveAndQuarterTheCache) {
  const KvPool::Layout f16{.layers = 3, .kv_heads = 2, .head_dim = 128};
  KvPool::Layout i8 = f16, u4 = f16;
  i8.dtype = DType::kI8;
  u4.dtype = DType::kU4;
  EXPECT_EQ(f16.row_bytes(), 256);
  EXPECT_EQ(i8.row_bytes(), 132);  // and a scale
  EXPECT_EQ(u4.row_bytes(), 72);   // and a scale and a minimum
}

TEST(KvRowTest, I8RoundsToHalfAStep) {
  for (const int64_t n : {1, 7, 64, 129}) {
    const std::vector<float> x = RandomNormal(n, 3);
    std::vector<std::byte> row(static_cast<size_t>(KvRowBytes(DType::kI8, n)));
    std::vector<float> decoded(x.size());
    EncodeKvI8(x.data(), n, row.data());
    DecodeKvI8(row.data(), n, decoded.data());
    float absmax = 0;
    for (const float v : x) absmax = std::max(absmax, std::fabs(v));
    // Half a step and the roundings of scale, quotient and product.
    for (int64_t i = 0; i < n; ++i)
      EXPECT_LE(std::fabs(x[i] - decoded[i]), absmax / 127 * 0.50001f) << i;
  }
}

TEST(KvRowTest, U4RoundsToHalfAStepAndReachesBothEnds) {
  for (const int64_t n : {1, 2, 7, 64, 129}) {
    std::vector<float> x = RandomNormal(n, 3);
    for (float& v : x) v += 10;  // far from zero: the minimum is stored
    std::vector<std::byte> row(static_cast<size_t>(KvRowBytes(DType::kU4, n)));
    std::vector<float> decoded(x.size());
    EncodeKvU4(x.data(), n, row.data());
    DecodeKvU4(row.data(), n, decoded.data());
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    for (int64_t i = 0; i < n; ++i)
      EXPECT_LE(std::fabs(x[i] - decoded[i]), (*high - *low) / 15 * 0.5001f + 1e-5f) << i;
    EXPECT_NEAR(*std::max_element(decoded.begin(), decoded.end()), *high, 1e-5f);
    EXPECT_EQ(*std::min_element(decoded.begin(), decoded.end()), *low);
  }
}

TEST(KvRowTest, ZerosStayAndNotANumberStaysVisible) {
  std::vector<std::byte> row(static_cast<size_t>(KvRowBytes(DType::kF32, 8)));
  std::vector<float> decoded(8);
  const std::vector<float> zeros(8, 0.0f);
  EncodeKvI8(zeros.data(), 8, row.data());
  DecodeKvI8(row.data(), 8, decoded.data());
  EXPECT_EQ(decoded, zeros);
  EncodeKvU4(zeros.data(), 8, row.data());
  DecodeKvU4(row.data(), 8, decoded.data());
  EXPECT_EQ(decoded, zeros);
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    std::vector<float> x = RandomNormal(8, 3);
    x[5] = bad;
    EncodeKvI8(x.data(), 8, row.data());
    DecodeKvI8(row.data(), 8, decoded.data());
    for (const float v : decoded) EXPECT_TRUE(std::isnan(v));
    EncodeKvU4(x.data(), 8, row.data());
    DecodeKvU4(row.data(), 8, decoded.data());
    for (const float v : decoded) EXPECT_TRUE(std::isnan(v));
  }
}

class StoreKvTest : public OpsVariant {};
ASSAY_OPS_VARIANTS(StoreKvTest);

TEST_P(StoreKvTest, WritesEachRowAtItsPositionThroughTheBlockTable) {
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    const int heads = 2, d = 11, stride = 50;
    ASSERT_OK_AND_ASSIGN(KvPool kv, KvPool::Create(CpuDevice(), {2, heads, d, dtype}, 6));
    std::fill_n(kv.keys(0, 0, 0), kv.bytes(), std::byte{0});
    const int32_t blocks_a[] = {5, 0, 3}, blocks_b[] = {2};
    const SequenceSpan spans[] = {
        {.first_row = 0, .num_rows = 5, .start_position = 30, .blocks = blocks_a},
        {.first_row = 5, .num_rows = 2, .start_position = 0, .blocks = blocks_b}};
    const int32_t tokens[7] = {};
    const auto x = RandomNormal(7 * stride, 1);
    const StridedRows k{x.data(), stride}, v{x.data() + heads * d, stride};
    ops.StoreKv(k, v, {.tokens = tokens, .sequences = spans}, 1, kv, context);
    const auto read = [&](const std::byte* tile, int slot, int i) {
      return dtype == DType::kF32 ? reinterpret_cast<const float*>(tile)[slot * d + i]
                                  : F16ToF32(reinterpret_cast<const uint16_t*>(tile)[slot * d + i]);
    };
    const struct {
      int row, block, slot;
    } places[] = {{0, 0, 14}, {1, 0, 15}, {2, 3, 0}, {4, 3, 2}, {5, 2, 0}, {6, 2, 1}};
    for (const auto& [row, block, slot] : places) {
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < d; ++i) {
          const float key = x[row * stride + h * d + i];
          const float value = x[row * stride + heads * d + h * d + i];
          const bool half = dtype == DType::kF16;
          ASSERT_EQ(read(kv.keys(1, block, h), slot, i), half ? F16ToF32(F32ToF16(key)) : key);
          ASSERT_EQ(read(kv.values(1, block, h), slot, i),
                    half ? F16ToF32(F32ToF16(value)) : value);
        }
      }
    }
    EXPECT_EQ(read(kv.keys(1, 3, 0), 3, 0), 0.0f) << "wrote past the last row";
    EXPECT_EQ(read(kv.keys(0, 3, 0), 0, 0), 0.0f) << "wrote to another layer";
  }
}

}  // namespace
}  // namespace assay
