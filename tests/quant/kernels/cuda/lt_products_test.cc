// How algorithms of cuBLASLt are chosen and used, on the library of fake_cublas_lt.cc.
#include "quant/kernels/cuda/lt_products.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "base/float16.h"
#include "tests/quant/kernels/cuda/fake_cublas_lt.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kFirst = FakeCublasLt::kMark, kSecond = FakeCublasLt::kMark + 2;
constexpr LtShape kShape = {.n = 8, .k = 16, .operands = LtType::kBf16};

class LtProductsTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_OK_AND_ASSIGN(device_, CudaDevice::Open(EmulatedCuda(), 0)); }
  ~LtProductsTest() override { ResetFakeCublasLt(FAKE_CUBLAS_LT); }
  // The second algorithm is the faster one where there are more than 128 rows.
  absl::StatusOr<double> Time(const LtAlgorithm& algorithm,
                              const std::function<absl::Status()>& run) {
    ++timed_;
    RETURN_IF_ERROR(run());
    return (algorithm.words[0] == kSecond) == (fake_.last_m > 128) ? 1.0 : 2.0;
  }
  std::unique_ptr<LtProducts> Make(LtTimer timer = nullptr) {
    if (!timer)
      timer = [this](const LtAlgorithm& a, const std::function<absl::Status()>& run) {
        return Time(a, run);
      };
    auto library = CublasLt::Load(FAKE_CUBLAS_LT);
    EXPECT_OK(library.status());
    auto made = LtProducts::Create(*device_, *std::move(library),
                                   {directory_.path(), std::move(timer), most_result_bytes_});
    EXPECT_OK(made.status());
    return *std::move(made);
  }
  absl::Status Run(const LtProduct& product, int rows) {
    const std::vector<uint16_t> w(8 * 16, F32ToBf16(1)),
        x(static_cast<size_t>(rows) * 16, F32ToBf16(2));
    std::vector<float> y(static_cast<size_t>(rows) * 8);
    std::vector<std::byte> workspace(product.workspace_bytes(rows));
    RETURN_IF_ERROR(product.Run(
        rows, {.w = w.data(), .x = x.data(), .y = y.data(), .workspace = workspace.data()}));
    EXPECT_EQ(y, std::vector<float>(y.size(), 32.0f));
    return absl::OkStatus();
  }

  FakeCublasLt& fake_ = ResetFakeCublasLt(FAKE_CUBLAS_LT);
  const TempDir directory_;
  size_t most_result_bytes_ = LtOptions().most_result_bytes;
  std::unique_ptr<CudaDevice> device_;
  int timed_ = 0;
};

TEST_F(LtProductsTest, TheFastestOfEachBucketServes) {
  const auto products = Make();
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, products->Tune(kShape));
  ASSERT_NE(product, nullptr);
  EXPECT_EQ(product->most_rows(), 8192);
  EXPECT_EQ(product->workspace_bytes(1), 1024u);
  EXPECT_EQ(timed_, 7 * 2);
  for (const auto& [rows, mark] :
       {std::pair(1, kFirst), {100, kFirst}, {128, kFirst}, {129, kSecond}, {300, kSecond}}) {
    ASSERT_OK(Run(*product, rows));
    EXPECT_EQ(fake_.last_mark, mark) << rows;
    EXPECT_EQ(fake_.last_m, rows);  // not the bucket's
  }
  ASSERT_OK_AND_ASSIGN(const LtProduct* const again, products->Tune(kShape));
  EXPECT_EQ(again, product);
  EXPECT_EQ(timed_, 7 * 2);
}

TEST_F(LtProductsTest, MemoryForTimingIsBounded) {
  most_result_bytes_ = 300 * 8 * sizeof(float);
  const auto products = Make();
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, products->Tune(kShape));
  EXPECT_EQ(product->most_rows(), 256);
  EXPECT_EQ(device_->allocated_bytes(), 0u);
  ASSERT_OK_AND_ASSIGN(const LtProduct* const wide, products->Tune({.n = 4096, .k = 16}));
  EXPECT_EQ(wide->most_rows(), 128);
}

TEST_F(LtProductsTest, ChoicesAreKeptOnDisk) {
  ASSERT_OK(Make()->Tune(kShape));
  EXPECT_EQ(std::exchange(timed_, 0), 14);
  const auto products = Make();
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, products->Tune(kShape));
  EXPECT_EQ(timed_, 0);
  ASSERT_OK(Run(*product, 129));
  EXPECT_EQ(fake_.last_mark, kSecond);
  ASSERT_OK(products->Tune({.n = 16, .k = 16}));  // another one
  EXPECT_EQ(timed_, 14);
}

TEST_F(LtProductsTest, AKeptChoiceThatTheLibraryRefusesIsFoundAnew) {
  ASSERT_OK(Make()->Tune(kShape));
  timed_ = 0;
  fake_.refused_m = 256;
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, Make()->Tune(kShape));
  EXPECT_EQ(timed_, 2);  // of 256 rows, in vain
  EXPECT_EQ(product, nullptr);
}

TEST_F(LtProductsTest, TimesOnTheDevice) {
  const auto found = LtProducts::Create(*device_, *CublasLt::Load(FAKE_CUBLAS_LT), {});
  ASSERT_OK(found);
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, (*found)->Tune(kShape));
  ASSERT_NE(product, nullptr);
  EXPECT_EQ(fake_.products, 7 * 2 * 4);  // once to load, three times by the clock
  EXPECT_TRUE(std::filesystem::is_empty(directory_.path()));
}

TEST_F(LtProductsTest, WithoutAlgorithmsOwnKernelsServe) {
  fake_.algorithms = 0;
  EXPECT_THAT(Make()->Tune(kShape), IsOkAndHolds(nullptr));
  fake_.algorithms = 3;
  EXPECT_THAT(Make()->Tune({.n = 6, .k = 16}), IsOkAndHolds(nullptr));  // LtRefuses
  EXPECT_EQ(timed_, 0);
  fake_.fails = true;
  EXPECT_THAT(Make()->Tune(kShape), IsOkAndHolds(nullptr));
  EXPECT_EQ(timed_, 2);
}

TEST_F(LtProductsTest, ALibraryThatIsNotThereIsNoError) {
  for (const char* path : {"/nowhere/libcublasLt.so", "libm.so.6"}) {
    ASSERT_OK_AND_ASSIGN(const auto none, LtProducts::Open(*device_, path, {}));
    EXPECT_EQ(none, nullptr);
  }
  ASSERT_OK_AND_ASSIGN(const auto found, LtProducts::Open(*device_, FAKE_CUBLAS_LT, {}));
  EXPECT_NE(found, nullptr);
}

TEST_F(LtProductsTest, WithoutMemoryForTimingOwnKernelsServe) {
  // A weight of 4 GiB; the emulated device has 1.
  EXPECT_THAT(Make()->Tune({.n = 1 << 20, .k = 2048}), IsOkAndHolds(nullptr));
  EXPECT_EQ(timed_, 0);
  EXPECT_EQ(device_->allocated_bytes(), 0u);
  EXPECT_OK(device_->health());
}

TEST_F(LtProductsTest, AWeakerDeviceThatIsPlayedHasItsRules) {
  ASSERT_OK_AND_ASSIGN(device_, CudaDevice::Open(EmulatedCuda(), 0, "sm89"));
  const auto products = Make();
  LtShape shape = {.n = 64, .k = 64, .operands = LtType::kE4M3, .scales = LtScales::kRows};
  EXPECT_THAT(products->Tune(shape), IsOkAndHolds(nullptr));
  shape = kShape;
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, products->Tune(shape));
  EXPECT_NE(product, nullptr);
}

TEST_F(LtProductsTest, AnAlgorithmThatFailsIsLeftOut) {
  const auto products = Make([](const LtAlgorithm& a, const auto& run) -> absl::StatusOr<double> {
    RETURN_IF_ERROR(run());
    if (a.words[0] == kFirst) return absl::InternalError("cuBLASLt: status=13");
    return 1.0;
  });
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, products->Tune(kShape));
  ASSERT_NE(product, nullptr);
  ASSERT_OK(Run(*product, 4));
  EXPECT_EQ(fake_.last_mark, kSecond);
}

TEST_F(LtProductsTest, AnErrorThatEndsTheDeviceIsReported) {
  const auto products = Make([](const LtAlgorithm&, const auto&) -> absl::StatusOr<double> {
    return CudaStatus(700, "synchronize");
  });
  EXPECT_THAT(products->Tune(kShape).status(),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("illegal address")));
  EXPECT_THAT(device_->health(), StatusIs(absl::StatusCode::kInternal));
}

TEST_F(LtProductsTest, SaysWhichRowsTheLibraryRefuses) {
  const auto products = Make();
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, products->Tune(kShape));
  fake_.refused_m = 100;
  const int products_before = fake_.products;
  for (int i = 0; i < 2; ++i)
    EXPECT_THAT(Run(*product, 100), StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("m=100")));
  EXPECT_EQ(fake_.products, products_before);
  const int checks = fake_.checks;
  EXPECT_FALSE(Run(*product, 100).ok());
  EXPECT_EQ(fake_.checks, checks);  // it is known
  EXPECT_OK(Run(*product, 101));
}

TEST_F(LtProductsTest, SaysWhatFailedWhileServing) {
  const auto products = Make();
  ASSERT_OK_AND_ASSIGN(const LtProduct* const product, products->Tune(kShape));
  fake_.fails = true;
  EXPECT_THAT(Run(*product, 5), StatusIs(absl::StatusCode::kInternal,
                                         AllOf(HasSubstr("status=13"), HasSubstr("m=5"))));
}

}  // namespace
}  // namespace assay
