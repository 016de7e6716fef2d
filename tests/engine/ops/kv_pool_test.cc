#include "engine/ops/kv_pool.h"

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
                             {.layers = 1, .kv_heads = 1, .head_dim = 8, .dtype = DType::kI8}, 4),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("dtype=i8")));
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
