// Memory that kernels and the test see alike (cuda_world.h), for tests of kernels.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "tests/support/cuda_world.h"

namespace assay::ASSAY_WORLD {

// What is not written is NaN. In the emulator it ends at an inaccessible page, give or take its
// rounding up to 256 bytes.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count)
      : data_(static_cast<T*>(AllocateInWorld(Reserved(count)))), count_(count) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    std::copy(values.begin(), values.end(), data_);
  }
  DeviceArray(DeviceArray&& from) noexcept
      : data_(std::exchange(from.data_, nullptr)), count_(std::exchange(from.count_, 0)) {}
  DeviceArray& operator=(DeviceArray&& from) noexcept {
    std::swap(data_, from.data_);
    std::swap(count_, from.count_);
    return *this;
  }
  ~DeviceArray() {
    if (data_ != nullptr) FreeInWorld(data_, Reserved(count_));
  }
  T* data() const { return data_; }
  size_t size() const { return count_; }
  size_t bytes() const { return count_ * sizeof(T); }
  T& operator[](size_t i) const { return data_[i]; }
  std::vector<T> values() const { return {data_, data_ + count_}; }

 private:
  static size_t Reserved(size_t count) { return sizeof(T) * (count == 0 ? 1 : count); }
  T* data_;
  size_t count_;
};

}  // namespace assay::ASSAY_WORLD
