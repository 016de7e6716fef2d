// Layers on the device by every row of cuda_linear.h's table, against f64 sums over what the scheme
// decodes and what the activation mode makes of x; cuBLASLt is the library of fake_cublas_lt.cc.
//
// Tolerance. What enters a product is known exactly: x rounded to T or in codes, W decoded, rounded
// to T where it is expanded. Sums round: at most k / 16 + 16 times (as in skinny_test.cc) by 2^-22
// of what they add, at most S = sum |x w| + |bias| + |y before|. The library of the tests sums in
// f64. Where it refuses rows of codes, those are rounded to T, as are nf4's values in skinny
// products: 2^-11 (f16), 2^-8 (bf16) of S more.
#include "quant/kernels/cuda/cuda_linear.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "base/float16.h"
#include "base/thread_pool.h"
#include "quant/activation.h"
#include "quant/kernels/cuda/cuda_kernel.h"
#include "tests/quant/kernels/cuda/fake_cublas_lt.h"
#include "tests/support/device_array.h"
#include "tests/support/random_tensor.h"
#include "tests/support/scheme_testing.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using emulated::DeviceArray;
using ::testing::HasSubstr;

constexpr auto kA16 = ActivationMode::kA16;
constexpr auto kToken = ActivationMode::kFp8Token;
constexpr auto kBlock = ActivationMode::kFp8Block;
const float kNaN = std::nanf("");

struct Layer {
  const char* scheme = "fp8_e4m3";
  ActivationMode activation = kToken;
  int n = 0, k = 0;
  bool bias = false, accumulate = false;
};

class CudaLinearTest : public testing::Test {
 protected:
  void SetUp() override { Open(""); }
  ~CudaLinearTest() override { ResetFakeCublasLt(FAKE_CUBLAS_LT); }

  void Open(std::string_view profile) {
    lt_.reset();
    ASSERT_OK_AND_ASSIGN(device_, CudaDevice::Open(EmulatedCuda(), 0, profile));
    ASSERT_OK_AND_ASSIGN(auto library, CublasLt::Load(FAKE_CUBLAS_LT));
    LtOptions options;
    options.most_result_bytes = most_result_bytes_;
    options.timer = [](const LtAlgorithm&, const auto&) { return 1.0; };  // nothing is run
    ASSERT_OK_AND_ASSIGN(lt_, LtProducts::Create(*device_, std::move(library), options));
  }
  CudaBackend Backend() const {
    return {*device_, EmulatedLinearKernels(), half_, with_lt_ ? lt_.get() : nullptr};
  }
  double HalfUlp() const { return half_ == Half::kF16 ? 0x1p-11 : 0x1p-8; }
  float Rounded(float v) const {
    return half_ == Half::kF16 ? F16ToF32(F32ToF16(v)) : Bf16ToF32(F32ToBf16(v));
  }

  // A layer and all that the test knows of it.
  void Make(const Layer& layer) {
    layer_ = layer;
    ASSERT_OK_AND_ASSIGN(const QuantScheme* const scheme, FindScheme(layer.scheme));
    ASSERT_OK_AND_ASSIGN(weight_,
                         scheme->Encode(RandomTensor({layer.n, layer.k}, 7, 0.05f).view()));
    bias_ = layer.bias ? RandomTensor({layer.n}, 9) : Tensor();
    ASSERT_OK_AND_ASSIGN(linear_, CudaLinear::Create(Backend(), weight_, bias_, layer.activation));
  }

  // y of the layer, for x [rows, k], in scratch memory of exactly the size that the layer says.
  struct Memory {
    DeviceArray<std::byte> x, expanded, padded, workspace;
    DeviceArray<float> x_scales, y, partial;
    DeviceArray<int> counters;
  };
  Memory Stage(const std::vector<float>& x, int rows) const {
    const CudaLinear& l = *linear_;
    const auto m = static_cast<size_t>(rows), n = static_cast<size_t>(layer_.n);
    const bool codes = l.input(rows) == RowForm::kE4M3;
    Memory memory = {DeviceArray<std::byte>(x.size() * (codes ? 1 : 2)),
                     DeviceArray<std::byte>(l.expanded_bytes(rows)),
                     DeviceArray<std::byte>(l.padded_bytes(rows)),
                     DeviceArray<std::byte>(l.workspace_bytes(rows)),
                     DeviceArray<float>(m),
                     DeviceArray<float>(m * n),
                     DeviceArray<float>(l.partial_floats(rows)),
                     DeviceArray<int>(std::vector<int>(l.counters(rows)))};
    Fill(memory, x, rows);
    return memory;
  }
  void Fill(const Memory& memory, const std::vector<float>& x, int rows) const {
    if (layer_.accumulate) {
      const std::vector<float> before = Before(rows);
      std::copy(before.begin(), before.end(), memory.y.data());
    }
    if (linear_->input(rows) == RowForm::kE4M3) {
      const DeviceArray<float> from(x);
      ASSERT_EQ(EmulatedLinearKernels().quantize_rows(
                    {.from = from.data(),
                     .codes = reinterpret_cast<uint8_t*>(memory.x.data()),
                     .scales = memory.x_scales.data(),
                     .rows = rows,
                     .k = layer_.k,
                     .from_stride = layer_.k,
                     .codes_stride = layer_.k,
                     .to = RowCodes::kFp8Token},
                    {}),
                0);
      return;
    }
    auto* const to = reinterpret_cast<uint16_t*>(memory.x.data());
    for (size_t i = 0; i < x.size(); ++i)
      to[i] = half_ == Half::kF16 ? F32ToF16(x[i]) : F32ToBf16(x[i]);
  }
  absl::Status Run(const Memory& memory, int rows) const {
    return linear_->Run({.x = memory.x.data(),
                         .x_scales = memory.x_scales.data(),
                         .rows = rows,
                         .y = memory.y.data(),
                         .accumulate = layer_.accumulate,
                         .scratch = {.expanded = memory.expanded.data(),
                                     .padded = memory.padded.data(),
                                     .partial = memory.partial.data(),
                                     .counters = memory.counters.data(),
                                     .workspace = memory.workspace.data()}});
  }
  std::vector<float> Run(const std::vector<float>& x, int rows) const {
    const Memory memory = Stage(x, rows);
    EXPECT_OK(Run(memory, rows));
    for (const int counter : memory.counters.values()) EXPECT_EQ(counter, 0);
    return memory.y.values();
  }
  std::vector<float> Before(int rows) const { return RandomNormal(int64_t{rows} * layer_.n, 10); }
  std::vector<float> X(int rows) const { return RandomNormal(int64_t{rows} * layer_.k, 8); }

  // What is multiplied: x as `mode` represents it after `round`, W rounded to T or not.
  struct Seen {
    ActivationMode mode = kA16;
    bool x_in_t = true, w_in_t = false;
    double x_error = 0;  // of what is rounded once more, of its size
  };
  Seen SeenOf(int rows) const {
    const bool many = rows > kFewRows;
    if (many && linear_->input(rows) == RowForm::kE4M3) return {.mode = kToken, .x_in_t = false};
    if (many && fake_.last_scales == static_cast<int>(LtScales::kRows128)) return {.mode = kBlock};
    const bool plain = StorageBits(linear_->weight().storage) >= 16;
    const bool table = !many && linear_->weight().storage == Storage::kNf4;
    return {.w_in_t = many || plain, .x_error = table ? HalfUlp() : 0};
  }
  // The number of elements of y that are farther off than the tolerance.
  int Off(const std::vector<float>& y, const std::vector<float>& x, int rows, const Seen& seen) {
    const auto n = static_cast<size_t>(layer_.n), k = static_cast<size_t>(layer_.k);
    std::vector<float> w = DecodeAll(weight_), row(k), as_seen(k);
    if (seen.w_in_t)
      std::transform(w.begin(), w.end(), w.begin(), [&](float v) { return Rounded(v); });
    const std::vector<float> before = Before(rows);
    // Scales in blocks are for multiples of four rows; the others are the skinny product's.
    const size_t coded = seen.mode == kBlock ? static_cast<size_t>(rows / 4 * 4) : rows;
    const double ulps = (static_cast<double>(k) / 16 + 16) * 0x1p-22 + seen.x_error;
    int off = 0;
    for (size_t i = 0; i < static_cast<size_t>(rows); ++i) {
      for (size_t j = 0; j < k; ++j) row[j] = seen.x_in_t ? Rounded(x[i * k + j]) : x[i * k + j];
      std::vector<int16_t> codes(k);
      as_seen = row;
      if (seen.mode != kA16 && i < coded) RepresentRow(seen.mode, {}, {}, row, codes, as_seen);
      for (size_t j = 0; j < n; ++j) {
        double sum = layer_.bias ? bias_.data<float>()[j] : 0;
        if (layer_.accumulate) sum += before[i * n + j];
        double size = std::abs(sum) + (layer_.accumulate ? std::abs(before[i * n + j]) : 0);
        for (size_t l = 0; l < k; ++l) {
          const double product = static_cast<double>(as_seen[l]) * w[j * k + l];
          sum += product;
          size += std::abs(product);
        }
        off += std::abs(y[i * n + j] - sum) <= ulps * size ? 0 : 1;
      }
    }
    return off;
  }
  void ExpectRight(int rows) {
    fake_.last_scales = -1;
    const std::vector<float> x = X(rows), y = Run(x, rows);
    EXPECT_EQ(Off(y, x, rows, SeenOf(rows)), 0)
        << layer_.scheme << " " << Name(layer_.activation) << " m=" << rows << " n=" << layer_.n
        << " k=" << layer_.k;
  }

  FakeCublasLt& fake_ = ResetFakeCublasLt(FAKE_CUBLAS_LT);
  Half half_ = Half::kBf16;
  bool with_lt_ = true;
  size_t most_result_bytes_ = size_t{1} << 20;
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<LtProducts> lt_;
  Layer layer_;
  QuantizedTensor weight_;
  Tensor bias_;
  std::unique_ptr<const CudaLinear> linear_;
};

// What the library multiplied: the operands' type and scales; nullopt: nothing.
struct Expected {
  Layer layer;
  std::optional<std::pair<LtType, LtScales>> many;
};
const std::pair kBf16 = {LtType::kBf16, LtScales::kNone};
const std::pair kRows = {LtType::kE4M3, LtScales::kRows};
const std::pair kBlocks = {LtType::kE4M3, LtScales::kRows128};

TEST_F(CudaLinearTest, FollowsItsTable) {
  for (const Expected& e : {
           Expected{{"fp8_e4m3", kToken, 68, 96}, kRows},
           Expected{{"fp8_e4m3", kToken, 20, 200}, kRows},        // k is padded
           Expected{{"fp8_e4m3", kToken, 67, 96}, std::nullopt},  // n breaks the library's rules
           Expected{{"fp8_e4m3:tensor", kToken, 36, 96}, kBf16},
           Expected{{"fp8_e4m3:block", kToken, 36, 160}, kBf16},
           Expected{{"fp8_e4m3:block", kBlock, 132, 300}, kBlocks},
           Expected{{"fp8_e4m3", kBlock, 36, 256}, kBlocks},
           Expected{{"int4_group", kBlock, 36, 384}, kBlocks},
           Expected{{"int4_group:asym", kBlock, 36, 200}, kBlocks},
           Expected{{"int4_group:row", kBlock, 36, 288}, kBlocks},
           Expected{{"int4_group:g32", kBlock, 36, 128}, kBf16},
           Expected{{"int4_group", kA16, 36, 256}, kBf16},
           Expected{{"nf4", kA16, 36, 100}, kBf16},
           Expected{{"int8_channel", kA16, 36, 96}, kBf16},
           Expected{{"bf16", kA16, 36, 72}, kBf16},
           Expected{{"fp8_e4m3", kA16, 36, 64}, kBf16},
       }) {
    Make(e.layer);
    for (const int rows : {1, 64, 65, 131}) {
      const int before = fake_.products;
      ExpectRight(rows);
      const bool used = fake_.products > before;
      EXPECT_EQ(used, rows > 64 && e.many) << e.layer.scheme << " m=" << rows;
      if (used) {
        EXPECT_EQ(fake_.last_operands, static_cast<int>(e.many->first)) << e.layer.scheme;
        EXPECT_EQ(fake_.last_scales, static_cast<int>(e.many->second)) << e.layer.scheme;
      }
    }
  }
}

TEST_F(CudaLinearTest, AnotherOperandIsNoticed) {
  for (const Layer& layer :
       {Layer{"fp8_e4m3", kToken, 32, 96}, Layer{"int4_group", kBlock, 32, 256}}) {
    Make(layer);
    const std::vector<float> x = X(80), y = Run(x, 80);
    // The other mode's codes, and none at all, are far off.
    for (const ActivationMode mode : {kA16, layer.activation == kToken ? kBlock : kToken})
      EXPECT_GT(Off(y, x, 80, {.mode = mode}), 80 * 32 * 9 / 10);
  }
}

TEST_F(CudaLinearTest, BiasAndWhatWasThereAreAdded) {
  for (const auto& [scheme, activation] : {std::pair("fp8_e4m3", kToken),
                                           {"int4_group", kBlock},
                                           {"int4_group", kA16},
                                           {"bf16", kA16}}) {
    for (const bool with_lt : {true, false}) {
      with_lt_ = with_lt;
      for (const bool bias : {false, true}) {
        for (const bool accumulate : {false, true}) {
          Make({scheme, activation, 20, 256, bias, accumulate});
          for (const int rows : {3, 67}) ExpectRight(rows);
        }
      }
    }
  }
}

TEST_F(CudaLinearTest, HalfPrecisionToo) {
  half_ = Half::kF16;
  for (const Layer& layer :
       {Layer{"fp8_e4m3", kToken, 20, 96, true, true},
        Layer{"int4_group", kBlock, 20, 256, true, true}, Layer{"nf4", kA16, 20, 96, true, true}}) {
    Make(layer);
    ExpectRight(70);
  }
  EXPECT_EQ(fake_.last_operands, static_cast<int>(LtType::kF16));
}

// The reference kernel of the CPU sums k products of f32 in f32, so by (k + 1) 2^-24 of their
// sizes; it quantizes x by the same definition.
TEST_F(CudaLinearTest, Fp8TokenIsTheCpus) {
  constexpr int kRowCount = 70, kN = 36, kK = 200;
  Make({"fp8_e4m3", kToken, kN, kK, true});
  ASSERT_OK_AND_ASSIGN(
      const QuantizedLinear cpu,
      QuantizedLinear::Create(weight_, RandomTensor({kN}, 9), {kToken, "reference"}));
  const std::vector<float> x = X(kRowCount), y = Run(x, kRowCount), w = DecodeAll(weight_);
  std::vector<float> expected(y.size());
  ThreadPool pool({.num_threads = 1});
  Arena arena = *Arena::Create(CpuDevice(), cpu.scratch_bytes(kRowCount));
  ComputeContext context = {pool, arena};
  cpu.Forward(
      TensorOf({kRowCount, kK}, x).view(),
      {reinterpret_cast<std::byte*>(expected.data()), {kRowCount, kN}, DType::kF32, nullptr},
      context);
  for (size_t i = 0; i < y.size(); ++i) {
    double size = std::abs(bias_.data<float>()[i % kN]);
    for (size_t j = 0; j < kK; ++j)
      size += std::abs(x[i / kN * kK + j] * w[i % kN * kK + j]) * 1.0625;  // codes are that far off
    EXPECT_NEAR(y[i], expected[i], size * (kK + 8) * 0x1p-24) << i;
  }
}

// The interface of checks of single layers.
TEST_F(CudaLinearTest, TheKernelStagesCodes) {
  Make({"fp8_e4m3", kToken, 20, 96});
  const std::vector<float> x = X(80), y = Run(x, 80);
  const CudaLinearKernel kernel("cuda", Backend());
  std::vector<float> staged(y.size());
  ThreadPool pool({.num_threads = 1});
  Arena arena = *Arena::Create(CpuDevice(), 64);
  ComputeContext context = {pool, arena};
  const Tensor x_tensor = TensorOf({80, 96}, x);
  kernel.Run(*linear_,
             {x_tensor.view(),
              {},
              {reinterpret_cast<std::byte*>(staged.data()), {80, 20}, DType::kF32, nullptr},
              false},
             context);
  EXPECT_EQ(staged, y);
}

TEST_F(CudaLinearTest, CallsOfMoreRowsAreCut) {
  most_result_bytes_ = 1;  // buckets of 128 rows alone
  Open("");
  for (const Layer& layer : {Layer{"fp8_e4m3", kToken, 20, 96, true, true},
                             Layer{"int4_group", kBlock, 20, 256, true, true},
                             Layer{"int8_channel", kA16, 20, 96, true, true}}) {
    Make(layer);
    const int before = fake_.products;
    ExpectRight(300);
    EXPECT_EQ(fake_.products - before, 3);
    EXPECT_EQ(fake_.last_m, 44);
  }
}

TEST_F(CudaLinearTest, RowsThatTheLibraryRefusesAreOurs) {
  for (const auto& [layer, seen] :
       {std::pair(Layer{"fp8_e4m3", kToken, 20, 200, true, true},
                  Seen{.mode = kToken, .x_in_t = false, .x_error = HalfUlp()}),
        {Layer{"int4_group", kBlock, 20, 256, true, true}, Seen{}},
        {Layer{"int4_group", kA16, 20, 256, true, true}, Seen{.w_in_t = true}},
        {Layer{"bf16", kA16, 20, 64, true, true}, Seen{.w_in_t = true}}}) {
    fake_.refused_m = 0;
    Make(layer);
    fake_.refused_m = 132;
    const int before = fake_.products;
    const std::vector<float> x = X(132), y = Run(x, 132);
    EXPECT_EQ(Off(y, x, 132, seen), 0) << layer.scheme;
    EXPECT_EQ(fake_.products, before);
  }
}

TEST_F(CudaLinearTest, WithoutTheLibraryOrItsAlgorithmsOwnKernelsServe) {
  const auto all_right = [&] {
    for (const Layer& layer :
         {Layer{"fp8_e4m3", kToken, 36, 96}, Layer{"int4_group", kBlock, 36, 256},
          Layer{"int4_group", kA16, 36, 256}, Layer{"bf16", kA16, 36, 64}}) {
      Make(layer);
      EXPECT_EQ(linear_->input(100), RowForm::kHalf);
      EXPECT_EQ(linear_->workspace_bytes(100), 0u);
      ExpectRight(100);
    }
    EXPECT_EQ(fake_.products, 0);
  };
  with_lt_ = false;
  all_right();
  with_lt_ = true;
  fake_.algorithms = 0;
  all_right();
}

TEST_F(CudaLinearTest, OlderDevicesMultiplyFp8In16Bit) {
  Open("sm89");
  for (const Layer& layer :
       {Layer{"fp8_e4m3", kToken, 36, 96}, Layer{"int4_group", kBlock, 36, 256}}) {
    Make(layer);
    ExpectRight(100);
    EXPECT_EQ(fake_.last_operands, static_cast<int>(LtType::kBf16));
  }
}

TEST_F(CudaLinearTest, ARowWithoutANumberSpoilsItself) {
  for (const Layer& layer :
       {Layer{"fp8_e4m3", kToken, 20, 96}, Layer{"int4_group", kBlock, 20, 256}}) {
    Make(layer);
    std::vector<float> x = X(68);
    const std::vector<float> sound = Run(x, 68);
    x[static_cast<size_t>(66 * layer.k + 50)] = kNaN;
    const std::vector<float> y = Run(x, 68);
    for (size_t i = 0; i < y.size(); ++i) {
      if (i / 20 == 66) {
        EXPECT_TRUE(std::isnan(y[i])) << i;
      } else {
        EXPECT_EQ(y[i], sound[i]) << i;
      }
    }
  }
}

TEST_F(CudaLinearTest, ACapturedProductIsDoneByItsGraph) {
  fake_.enqueue = [](std::function<void()> work) { emulated::Enqueue(std::move(work)); };
  const CudaRuntime& runtime = EmulatedCuda();
  for (const Layer& layer :
       {Layer{"fp8_e4m3", kToken, 20, 200, true}, Layer{"int4_group", kBlock, 20, 256, true},
        Layer{"int8_channel", kA16, 20, 96, true}}) {
    Make(layer);
    const std::vector<float> x = X(67), first = Run(x, 67);
    std::vector<float> other = x;
    std::reverse(other.begin(), other.end());
    const std::vector<float> second = Run(other, 67);
    const Memory memory = Stage(x, 67);
    ASSERT_OK(runtime.BeginCapture(nullptr));
    ASSERT_OK(Run(memory, 67));
    ASSERT_OK_AND_ASSIGN(const GpuGraph graph, runtime.EndCapture(nullptr));
    EXPECT_TRUE(std::isnan(memory.y[0]));  // nothing has happened yet
    ASSERT_OK(runtime.Launch(graph, nullptr));
    EXPECT_EQ(memory.y.values(), first);
    Fill(memory, other, 67);
    ASSERT_OK(runtime.Launch(graph, nullptr));
    EXPECT_EQ(memory.y.values(), second);
    EXPECT_NE(first, second);
    runtime.DestroyGraph(graph);
  }
}

// A step of fewer rows fits the memory that was planned for the most.
TEST_F(CudaLinearTest, MemoryDoesNotShrinkWithRows) {
  for (const Layer& layer :
       {Layer{"fp8_e4m3", kToken, 20, 200}, Layer{"int4_group", kBlock, 20, 256},
        Layer{"fp8_e4m3:block", kBlock, 20, 256}, Layer{"nf4", kA16, 20, 96},
        Layer{"bf16", kA16, 20, 40}}) {
    Make(layer);
    std::array<size_t, 5> before{};
    for (int rows = 0; rows < 700; rows += 7) {
      const std::array<size_t, 5> now = {linear_->expanded_bytes(rows), linear_->padded_bytes(rows),
                                         linear_->partial_floats(rows), linear_->counters(rows),
                                         linear_->workspace_bytes(rows)};
      for (size_t i = 0; i < now.size(); ++i) EXPECT_GE(now[i], before[i]) << i << " m=" << rows;
      before = now;
    }
  }
}

TEST_F(CudaLinearTest, WhatFailsSaysSo) {
  Make({"fp8_e4m3", kToken, 20, 96});
  const Memory memory = Stage(X(80), 80);
  fake_.fails = true;
  EXPECT_THAT(Run(memory, 80), StatusIs(absl::StatusCode::kInternal, HasSubstr("m=80")));
  const auto refused = [&](const char* scheme, ActivationMode mode, const char* why) {
    const QuantScheme* const found = *FindScheme(scheme);
    EXPECT_THAT(CudaLinearRefuses(*found, {16, 64}, mode, Backend()),
                StatusIs(absl::StatusCode::kUnimplemented, HasSubstr(why)));
  };
  refused("int4_group", kToken, "fp8_token is multiplied with fp8_e4m3");
  refused("nf4", kBlock, "fp8_block is multiplied with");
  refused("int4_group:float", kBlock, "fp8_block is multiplied with");
  refused("fp8_e4m3", ActivationMode::kFp8Tensor, "fp8_tensor");
}

}  // namespace
}  // namespace assay
