// Dense row-major tensors. A view never owns, a Tensor always does.
#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "base/device.h"
#include "base/dtype.h"

namespace assay {

struct Shape {
  std::array<int64_t, 4> dim{1, 1, 1, 1};
  int rank = 0;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    for (int64_t d : dims) dim[rank++] = d;
  }
  int64_t operator[](int i) const { return dim[i]; }
  int64_t elements() const { return dim[0] * dim[1] * dim[2] * dim[3]; }
  bool operator==(const Shape&) const = default;
};

std::string ToString(const Shape& shape);  // "[2,3]"

// Bytes of a dense tensor; sub-byte rows are packed without padding.
constexpr size_t BytesOf(int64_t elements, DType t) {
  return (static_cast<size_t>(elements) * Bits(t) + 7) / 8;
}

// Non-owning, trivially copyable: pass by value.
template <typename Byte>
struct BasicView {
  Byte* data = nullptr;
  Shape shape;
  DType dtype = DType::kF32;
  Device* device = nullptr;

  template <typename T>
  auto as() const {  // REQUIRES: T is the C++ type of dtype
    if constexpr (std::is_const_v<Byte>) {
      return reinterpret_cast<const T*>(data);
    } else {
      return reinterpret_cast<T*>(data);
    }
  }
  size_t bytes() const { return BytesOf(shape.elements(), dtype); }
  bool empty() const { return data == nullptr; }
  // NOLINTNEXTLINE(google-explicit-constructor): a view narrows to a view of const freely
  operator BasicView<const std::byte>() const { return {data, shape, dtype, device}; }
};
using TensorView = BasicView<const std::byte>;
using MutableView = BasicView<std::byte>;

// Owns its bytes.
class Tensor {
 public:
  Tensor() = default;
  Tensor(Buffer buffer, Shape shape, DType dtype)
      : buffer_(std::move(buffer)), shape_(shape), dtype_(dtype) {}
  // Uninitialised. ResourceExhausted.
  static absl::StatusOr<Tensor> Create(Device& device, Shape shape, DType dtype);

  TensorView view() const { return {buffer_.data(), shape_, dtype_, buffer_.device()}; }
  MutableView mutable_view() { return {buffer_.data(), shape_, dtype_, buffer_.device()}; }
  const Shape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }
  size_t bytes() const { return empty() ? 0 : BytesOf(shape_.elements(), dtype_); }
  bool empty() const { return buffer_.bytes() == 0; }
  template <typename T>
  T* data() {
    return reinterpret_cast<T*>(buffer_.data());
  }
  template <typename T>
  const T* data() const {
    return reinterpret_cast<const T*>(buffer_.data());
  }

 private:
  Buffer buffer_;
  Shape shape_;
  DType dtype_ = DType::kF32;
};

}  // namespace assay
