// Weights quantized on a device: byte for byte what their scheme's Encode gives, in slices, too.
#include "quant/kernels/cuda/cuda_encode.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/quant/kernels/cuda/awkward_rows.h"
#include "tests/support/status_matchers.h"

namespace assay::ASSAY_WORLD {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

constexpr const char* kOnTheDevice[] = {"int8_channel",
                                        "fp8_e4m3",
                                        "fp8_e4m3:tensor",
                                        "fp8_e4m3:block",
                                        "int4_group",
                                        "int4_group:g32",
                                        "int4_group:row",
                                        "int4_group:full",
                                        "int4_group:g64,full",
                                        "int4_group:asym",
                                        "int4_group:g32,asym",
                                        "int8_group",
                                        "int8_group:g32",
                                        "int8_group:asym",
                                        "nf4",
                                        "nf4:b4096"};

bool IsOnTheDevice(std::string_view name) {
  return std::find(std::begin(kOnTheDevice), std::end(kOnTheDevice), name) !=
         std::end(kOnTheDevice);
}

// What is different, or nothing.
std::string Difference(const Tensor& a, const Tensor& b) {
  if (a.empty() && b.empty()) return "";
  if (a.dtype() != b.dtype()) return "type";
  if (a.shape() != b.shape()) return ToString(a.shape()) + " is not " + ToString(b.shape());
  const bool same = std::memcmp(a.data<std::byte>(), b.data<std::byte>(), a.bytes()) == 0;
  return same ? "" : "bytes";
}
std::string Difference(const QuantizedTensor& a, const QuantizedTensor& b) {
  if (a.scheme != b.scheme || a.shape != b.shape || a.group != b.group) return "form";
  if (!a.extra.empty() || !b.extra.empty()) return "extra";
  std::string found;
  for (const auto& [name, difference] : {std::pair("codes", Difference(a.codes, b.codes)),
                                         std::pair("scales", Difference(a.scales, b.scales)),
                                         std::pair("zeros", Difference(a.zeros, b.zeros))}) {
    if (!difference.empty()) found += std::string(name) + ": " + difference + " ";
  }
  return found;
}

// What the kernel that every weight passes through saw.
struct Seen {
  const CudaDevice* device = nullptr;
  size_t most_bytes = 0;  // of device memory in use
  int launches = 0;
} seen;
int LargestSeen(const LargestOfTilesArgs& args, const LaunchContext& context) {
  seen.most_bytes = std::max(seen.most_bytes, seen.device->allocated_bytes());
  ++seen.launches;
  return LargestOfTiles(args, context);
}

class CudaEncodeTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(device_, CudaDevice::Open(WorldCuda(), 0, WorldProfile()));
    kernels_.largest_of_tiles = LargestSeen;
    seen = {.device = device_.get()};
  }
  void TearDown() override { EXPECT_EQ(device_->allocated_bytes(), 0u); }

  absl::StatusOr<QuantizedTensor> Encode(const QuantScheme& scheme, const Tensor& w,
                                         size_t slot_bytes = kEncodeSlotBytes) {
    return CudaEncode({*device_, kernels_}, scheme, w.view(), slot_bytes);
  }
  void ExpectSame(const char* spelling, const Tensor& w, size_t slot_bytes) {
    SCOPED_TRACE(testing::Message() << spelling << " " << ToString(w.shape()));
    ASSERT_OK_AND_ASSIGN(const QuantScheme* const scheme, FindScheme(spelling));
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor got, Encode(*scheme, w, slot_bytes));
    ASSERT_OK_AND_ASSIGN(const QuantizedTensor wanted, scheme->Encode(w.view()));
    EXPECT_EQ(Difference(got, wanted), "");
    EXPECT_OK(scheme->DecodeRows(got, 0, 0, {}));  // looks at the form
  }

  std::unique_ptr<CudaDevice> device_;
  CudaLinearKernels kernels_ = ASSAY_CUDA_LINEAR_KERNELS(world);
};

TEST_F(CudaEncodeTest, GivesWhatTheSchemeGives) {
  for (const char* spelling : kOnTheDevice) {
    for (const Shape& shape : {Shape{1, 1}, Shape{5, 129}, Shape{130, 64}, Shape{40, 520}})
      ExpectSame(spelling, RandomTensor(shape, 7, 0.05f), kEncodeSlotBytes);
    ExpectSame(spelling, TensorOf({10, 200}, AwkwardRows<float>(10, 200, true)), kEncodeSlotBytes);
  }
}

TEST_F(CudaEncodeTest, SlicesGiveTheSameAndBoundTheMemory) {
  constexpr size_t kSlot = size_t{160} << 10;  // 128 to 190 rows
  std::vector<float> values = RandomNormal(300 * 200, 9, 0.05f);
  values.back() = 2;  // the scale of a tensor comes from the last slice
  const Tensor w = TensorOf({300, 200}, values);
  for (const char* spelling : kOnTheDevice) {
    seen.launches = 0;
    ExpectSame(spelling, w, kSlot);
    EXPECT_GE(seen.launches, 2) << spelling;
  }
  EXPECT_GT(seen.most_bytes, kSlot);  // two slices at a time
  EXPECT_LE(seen.most_bytes, 2 * kSlot + sizeof(int));
}

TEST_F(CudaEncodeTest, TheRestIsTheHosts) {
  int here = 0;
  const Tensor w = RandomTensor({4, 64}, 3);
  for (const QuantScheme* scheme : AllSchemes()) {
    const bool expected = IsOnTheDevice(scheme->name());
    here += expected ? 1 : 0;
    EXPECT_THAT(Encode(*scheme, w).status(),
                StatusIs(expected ? StatusCode::kOk : StatusCode::kUnimplemented, HasSubstr("")))
        << scheme->name();
  }
  EXPECT_GE(here, 10);
  // 128 rows of a block do not fit.
  EXPECT_THAT(Encode(**FindScheme("fp8_e4m3:block"), RandomTensor({4, 64}, 3), 1024).status(),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("too long")));
}

TEST_F(CudaEncodeTest, NumbersThatAreNotFiniteAreNoticed) {
  for (const char* spelling : kOnTheDevice) {
    for (const size_t at : {size_t{0}, size_t{300 * 40 - 1}}) {
      std::vector<float> values = RandomNormal(300 * 40, 3);
      values[at] = at == 0 ? std::nanf("") : std::numeric_limits<float>::infinity();
      EXPECT_THAT(Encode(**FindScheme(spelling), TensorOf({300, 40}, values), 40 << 10).status(),
                  StatusIs(StatusCode::kInvalidArgument, HasSubstr("NaN or infinity")))
          << spelling;
    }
  }
  ASSERT_OK_AND_ASSIGN(const Tensor halves, Tensor::Create(CpuDevice(), {2, 2}, DType::kBf16));
  EXPECT_THAT(Encode(**FindScheme("nf4"), halves).status(),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("f32")));
}

TEST_F(CudaEncodeTest, WhatALaunchMeetsIsSaid) {
  kernels_.quantize_nf4 = [](const QuantizeNf4Args&, const LaunchContext&) { return 700; };
  EXPECT_THAT(Encode(**FindScheme("nf4"), RandomTensor({2, 64}, 3)).status(),
              StatusIs(StatusCode::kInternal, HasSubstr("quantize_nf4 shape=[2,64]")));
  EXPECT_THAT(device_->health(), StatusIs(StatusCode::kInternal, HasSubstr("quantize_nf4")));
}

// The comparison can fail: a quantizer that leaves out the last row.
TEST_F(CudaEncodeTest, ABrokenKernelIsNoticed) {
  kernels_.quantize_rows = [](const QuantizeRowsArgs& args, const LaunchContext& context) {
    QuantizeRowsArgs fewer = args;
    --fewer.rows;
    return QuantizeRows(fewer, context);
  };
  const QuantScheme& scheme = **FindScheme("int8_channel");
  const Tensor w = RandomTensor({3, 64}, 3);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor got, Encode(scheme, w));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor wanted, scheme.Encode(w.view()));
  EXPECT_NE(Difference(got, wanted), "");
}

}  // namespace
}  // namespace assay::ASSAY_WORLD
