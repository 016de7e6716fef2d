// Devices and the memory they own.
#pragma once
#include <cstddef>
#include <span>
#include <string_view>
#include <utility>

#include "base/status.h"

namespace assay {

enum class DeviceKind { kCpu, kCuda };
class Device;

// Owns device memory; move-only. The device outlives every buffer that it gave out.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device& device, std::byte* data, size_t bytes)
      : device_(&device), data_(data), bytes_(bytes) {}
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    Buffer(std::move(other)).swap(*this);
    return *this;
  }
  ~Buffer();

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device* device() const { return device_; }
  void swap(Buffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

 private:
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// One per physical device. Thread-safe.
class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  virtual std::string_view name() const = 0;  // "cpu", "cuda:0"
  // 64-byte aligned, not zeroed; from 2 MiB on the CPU asks for huge pages. ResourceExhausted with
  // the size asked for.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes) = 0;
  virtual absl::Status Upload(std::span<const std::byte> from, Buffer& to) = 0;
  virtual absl::Status Download(const Buffer& from, std::span<std::byte> to) = 0;
  virtual absl::Status Synchronize() = 0;  // surfaces asynchronous faults
  virtual size_t free_bytes()
      const = 0;  // what a new allocation can count on: MemAvailable within the cgroup's limit
  virtual size_t allocated_bytes() const = 0;  // live bytes given out by Allocate

 private:
  friend class Buffer;
  virtual void Free(std::byte* data, size_t bytes) = 0;
};

inline Buffer::~Buffer() {
  if (device_ != nullptr) device_->Free(data_, bytes_);
}

Device& CpuDevice();  // GPUs: base/cuda/cuda_device.h

}  // namespace assay
