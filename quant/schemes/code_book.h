// Blocks of 4-bit codes for values of a fixed book: w ~ book[c] * scale. Formats for BlockScheme.
// Thread-safe.
#pragma once
#include <array>

#include "base/float8.h"
#include "quant/schemes/block_scheme.h"

namespace assay {

// struct Book {
//   static constexpr std::array<float, 16> kValues;   // by code
//   static constexpr bool kDivides;                   // w / scale; else w * (1 / scale)
//   static uint8_t Nearest(float v);                  // loops over it vectorise
//   static void ToCodes(uint8_t* nearest, int64_t count);   // what Nearest gave -> codes
//   static bool IsEnd(uint8_t code);                  // the largest magnitudes
// };
template <class Book>
struct CodeBookFormat {
  static constexpr int kBits = 4;
  static constexpr uint8_t kZeroCode = Book::kZeroCode;

  static void Encode(const Step& step, const float* w, int64_t count, uint8_t* codes) {
    if (!(step.scale > 0)) {
      std::fill_n(codes, count, kZeroCode);
      return;
    }
    const float factor = Book::kDivides ? step.scale : 1 / step.scale;
    for (int64_t i = 0; i < count; ++i)
      codes[i] = Book::Nearest(Book::kDivides ? w[i] / factor : w[i] * factor);
    Book::ToCodes(codes, count);
  }
  static void Decode(const Step& step, const uint8_t* codes, int64_t count, float* out) {
    for (int64_t i = 0; i < count; ++i) out[i] = Book::kValues[codes[i]] * step.scale;
  }
  static bool IsZero(const Step&, uint8_t code) { return Book::kValues[code] == 0; }
  static bool IsEnd(const Step&, uint8_t code) { return Book::IsEnd(code); }
  static const char* Forbidden(const Step&, uint8_t) { return nullptr; }
};

// OCP Microscaling E2M1 elements, ties to even; beyond 6 saturates.
struct E2M1Book {
  static constexpr const std::array<float, 16>& kValues = kE2M1Values;
  static constexpr bool kDivides = true;
  static constexpr uint8_t kZeroCode = 0;
  static uint8_t Nearest(float v) { return F32ToE2M1(v); }
  static void ToCodes(uint8_t*, int64_t) {}
  static bool IsEnd(uint8_t code) { return (code & 7) == 7; }
};

// A table of values kValues[code] and kCodes, the codes in ascending order of their values. The
// decisions lie in the middles, in f32; ties go to the lower value, as bitsandbytes rounds.
template <class Table>
struct SortedBook {
  static constexpr const std::array<float, 16>& kValues = Table::kValues;
  static constexpr bool kDivides = false;
  static constexpr uint8_t kZeroCode = Table::kZeroCode;
  static constexpr std::array<float, 15> kMiddles = [] {
    std::array<float, 15> middles{};
    for (size_t i = 0; i < 15; ++i) {
      middles[i] = (Table::kValues[Table::kCodes[i]] + Table::kValues[Table::kCodes[i + 1]]) / 2;
    }
    return middles;
  }();
  // The rank among the sorted values.
  static uint8_t Nearest(float v) {
    int above = 0;
    for (const float middle : kMiddles) above += static_cast<int>(v > middle);
    return static_cast<uint8_t>(above);
  }
  static void ToCodes(uint8_t* nearest, int64_t count) {
    for (int64_t i = 0; i < count; ++i) nearest[i] = Table::kCodes[nearest[i]];
  }
  static bool IsEnd(uint8_t code) { return code == Table::kCodes[0] || code == Table::kCodes[15]; }
};

}  // namespace assay
