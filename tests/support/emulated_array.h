// Arrays in the emulator's device memory, for tests of kernels.
#pragma once
#include <algorithm>
#include <vector>

#include "base/cuda/emulator.h"

namespace assay {

template <typename T>
class EmulatedArray {
 public:
  explicit EmulatedArray(size_t count)  // full of 0xff
      : count_(count), data_(static_cast<T*>(emulated::AllocateDevice(count * sizeof(T)))) {}
  explicit EmulatedArray(const std::vector<T>& values) : EmulatedArray(values.size()) {
    std::copy(values.begin(), values.end(), data_);
  }
  ~EmulatedArray() { emulated::FreeDevice(data_, count_ * sizeof(T)); }
  EmulatedArray(const EmulatedArray&) = delete;
  EmulatedArray& operator=(const EmulatedArray&) = delete;

  T* data() { return data_; }
  std::vector<T> values() const { return {data_, data_ + count_}; }

 private:
  size_t count_;
  T* data_;
};

}  // namespace assay
