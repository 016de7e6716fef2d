// What the tests of weight schemes share.
#pragma once
#include <cctype>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"
#include "quant/scheme.h"

namespace assay {

// A scheme's spelling as a part of a test's name: "int4_group_g32_asym".
inline std::string TestName(std::string_view spelling) {
  std::string name(spelling);
  for (char& c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) == 0) c = '_';
  }
  return name;
}

inline std::vector<float> DecodeAll(const QuantizedTensor& q) {
  std::vector<float> out(static_cast<size_t>(q.shape.elements()));
  const absl::Status status = q.scheme->DecodeRows(q, 0, q.shape[0], std::span<float>(out));
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

inline double Sqnr(const std::vector<float>& w, const std::vector<float>& decoded) {
  double signal = 0, noise = 0;
  for (size_t i = 0; i < w.size(); ++i) {
    signal += static_cast<double>(w[i]) * w[i];
    noise += std::pow(static_cast<double>(w[i]) - decoded[i], 2);
  }
  return 10 * std::log10(signal / noise);
}

// Bits of one code, or 0 where codes are no integers of fixed width. REQUIRES: k is a multiple
// of 8.
inline int CodeBits(const QuantizedTensor& q) {
  if (q.scheme->is_floating() || q.codes.shape().rank != 2) return 0;
  return static_cast<int>(8 * q.codes.shape()[1] / q.shape[1]);
}

// The byte at `index` of a row all of whose codes are `code`.
inline uint8_t ConstantByte(int bits, int code, int64_t index) {
  if (bits == 8) return static_cast<uint8_t>(code);
  uint32_t pattern = 0;
  for (int i = 0; i < 8; ++i) pattern |= static_cast<uint32_t>(code) << (bits * i);
  return static_cast<uint8_t>(pattern >> (8 * (index % bits)));
}

inline void FillRow(QuantizedTensor& q, int64_t row, int code) {
  const int64_t bytes = q.codes.shape()[1];
  for (int64_t i = 0; i < bytes; ++i)
    q.codes.data<uint8_t>()[row * bytes + i] = ConstantByte(CodeBits(q), code, i);
}

}  // namespace assay
