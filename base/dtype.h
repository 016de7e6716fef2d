// Element types of tensors. FP8 and 4-bit codes are stored; they are never computed on directly
// outside quant/.
#pragma once
#include <cstdint>
#include <string_view>

namespace assay {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBf16,
  kF8E4M3,
  kF8E5M2,
  kI8,
  kU8,
  kI16,
  kI32,
  kI64,
  kU4,
  kBool
};

// Bits of one element in memory.
constexpr int Bits(DType t) {
  switch (t) {
    case DType::kI64:
      return 64;
    case DType::kF32:
    case DType::kI32:
      return 32;
    case DType::kF16:
    case DType::kBf16:
    case DType::kI16:
      return 16;
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
      return 8;
    case DType::kU4:
      return 4;
  }
  return 0;
}

// "f32", "bf16", ...: the spelling used in reports, artifacts and logs.
std::string_view Name(DType t);

}  // namespace assay
