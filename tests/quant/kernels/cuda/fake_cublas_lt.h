// What tests tell the library of fake_cublas_lt.cc, and what it tells them. One for the process.
#pragma once
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <functional>

namespace assay {

struct FakeCublasLt {
  static constexpr uint64_t kMark = 0xa55a;  // an algorithm's first word: this + its index

  int algorithms = 3;     // that the heuristic finds; the second wants too much workspace
  int64_t refused_m = 0;  // not taken, once past the heuristic
  bool fails = false;     // products end with EXECUTION_FAILED
  // What a product does, put into the emulator's stream; null: done at once.
  void (*enqueue)(std::function<void()>) = nullptr;

  int heuristics = 0, checks = 0, products = 0;  // calls
  int scaled_products = 0;                       // of them, those with scales
  uint64_t last_mark = 0;                        // the algorithm of the last product
  int64_t last_m = 0;
  int last_operands = 0, last_scales = 0;  // LtType, LtScales of W
};

// Of the library that CublasLt::Load(path) opens. It stays loaded.
inline FakeCublasLt& FakeOf(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) std::abort();
  auto* const found =
      static_cast<FakeCublasLt*>(dlsym(library, "fake_cublas_lt_controls"));  // NOLINT
  if (found == nullptr) std::abort();
  return *found;
}
inline FakeCublasLt& ResetFakeCublasLt(const char* path) { return FakeOf(path) = {}; }

}  // namespace assay
