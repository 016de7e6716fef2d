// Weights in a device's memory (tests/support/cuda_world.h).
#pragma once
#include <cstring>
#include <vector>

#include "base/cuda/simt_math.h"
#include "gtest/gtest.h"
#include "quant/kernels/cuda/stored_weight.h"
#include "quant/scheme.h"
#include "quant/schemes/absmax_block.h"
#include "tests/support/device_array.h"
#include "tests/support/random_tensor.h"

namespace assay::ASSAY_WORLD {

inline DeviceArray<std::byte> BytesOnDevice(const Tensor& tensor) {
  DeviceArray<std::byte> out(tensor.bytes());
  if (!tensor.empty()) std::memcpy(out.data(), tensor.data<std::byte>(), tensor.bytes());
  return out;
}

// A weight in the canonical layout of `spelling`, and what the scheme says that it is.
struct DeviceWeight {
  QuantizedTensor host;
  std::vector<float> decoded;  // [n, k]
  DeviceArray<std::byte> codes, scales, zeros;
  StoredWeight stored;
};

inline StoredWeight Describe(const QuantizedTensor& q) {
  const std::string_view name = q.scheme->name();
  const auto n = static_cast<int>(q.shape[0]), k = static_cast<int>(q.shape[1]);
  StoredWeight w = {.n = n, .k = k, .group = static_cast<int>(q.scheme->group(q.shape))};
  if (name == "f32") w.storage = Storage::kF32;
  if (name == "bf16") w.storage = Storage::kBf16;
  if (name.starts_with("int4_group")) w.storage = Storage::kInt4Group;
  if (name.find("float") != name.npos) w.storage = Storage::kInt4Float;
  if (name == "int8_channel") w.storage = Storage::kInt8Channel;
  if (name.starts_with("int8_group")) w.storage = Storage::kInt8Group;
  if (name.starts_with("fp8_e4m3")) w.storage = Storage::kE4M3;
  if (name.starts_with("nf4")) w.storage = Storage::kNf4;
  w.scale_rows = static_cast<int>(q.scheme->scale_rows(q.shape));
  return w;
}

// nf4:double: the scales as their definition has them, in f32, which is what a device is given.
inline DeviceArray<std::byte> ExpandedScales(const QuantizedTensor& q) {
  const auto count = static_cast<size_t>(q.scales.shape().elements());
  const float* const nested = q.extra.find("nested_absmax")->second.data<float>();
  const float offset = *q.extra.find("nested_offset")->second.data<float>();
  DeviceArray<std::byte> out(sizeof(float) * count);
  for (size_t i = 0; i < count; ++i) {
    const float scale =
        DynamicMap()[q.scales.data<uint8_t>()[i]] * nested[i / kNestedBlock] + offset;
    std::memcpy(out.data() + sizeof(float) * i, &scale, sizeof(float));
  }
  return out;
}

inline DeviceWeight MakeWeight(std::string_view spelling, int n, int k, uint64_t seed) {
  const auto scheme = FindScheme(spelling);
  EXPECT_TRUE(scheme.ok()) << scheme.status();
  auto host = (*scheme)->Encode(RandomTensor({n, k}, seed, 0.05f).view());
  EXPECT_TRUE(host.ok()) << host.status();
  std::vector<float> decoded(static_cast<size_t>(n) * k);
  EXPECT_TRUE((*scheme)->DecodeRows(*host, 0, n, decoded).ok());
  DeviceWeight w = {*std::move(host),          std::move(decoded),        DeviceArray<std::byte>(0),
                    DeviceArray<std::byte>(0), DeviceArray<std::byte>(0), {}};
  w.codes = BytesOnDevice(w.host.codes);
  const bool nested = w.host.extra.find("nested_absmax") != w.host.extra.end();
  w.scales = nested ? ExpandedScales(w.host) : BytesOnDevice(w.host.scales);
  w.zeros = BytesOnDevice(w.host.zeros);
  w.stored = Describe(w.host);
  w.stored.codes = w.codes.data();
  w.stored.scales = w.scales.data();
  w.stored.zeros = w.host.zeros.empty() ? nullptr : static_cast<const void*>(w.zeros.data());
  return w;
}

template <typename T>
constexpr Half kHalfOf = Half::kF16;
template <>
inline constexpr Half kHalfOf<Bf16> = Half::kBf16;

// count numbers in T, N(0, 1).
template <typename T>
std::vector<T> RandomOf(size_t count, uint64_t seed) {
  std::vector<T> out;
  for (const float v : RandomNormal(static_cast<int64_t>(count), seed))
    out.push_back(FromFloat<T>(v));
  return out;
}

}  // namespace assay::ASSAY_WORLD
