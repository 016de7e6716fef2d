// What fuzz targets demand. A violation aborts: the fuzzer reports it.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "base/status.h"

namespace assay {

inline void Require(bool condition, const char* what = "") {
  if (condition) return;
  std::fprintf(stderr, "broken promise: %s\n", what);
  std::abort();
}

// Outside bytes give one of the codes that the header names, or none.
template <typename... Codes>
void RequireCode(const absl::Status& status, Codes... codes) {
  if (status.ok() || ((status.code() == codes) || ...)) return;
  std::fprintf(stderr, "undocumented status: %s\n", status.ToString().c_str());
  std::abort();
}

inline std::string_view TextOf(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// What stands before the first zero byte, and what after it.
struct Halves {
  std::string_view first, second;
};
inline Halves SplitAtZero(std::string_view bytes) {
  const size_t zero = bytes.find('\0');
  if (zero == bytes.npos) return {bytes, {}};
  return {bytes.substr(0, zero), bytes.substr(zero + 1)};
}

}  // namespace assay
