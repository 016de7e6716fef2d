// A GPU as a Device: its memory in Buffers, and what belongs to one and no other.
//
// Thread-safe. The stream is for copies of whole buffers; who computes has a stream of its own.
// Uploads stream through a ring of two pinned slots: while one is on its way, the host fills the
// other, from a mapped file as a rule.
#pragma once
#include <functional>
#include <memory>

#include "base/cuda/runtime.h"
#include "base/device.h"

namespace assay {

// What kernels may count on. Of the device itself, or of a weaker one that is played on it: paths
// that are taken on other GPUs can be tested where they are not.
struct CudaProfile {
  int compute = 90;  // capability, 10 * major + minor
  size_t shared_bytes_per_block = 0;
};
// "sm90", "sm86", "sm75", ...: with the shared memory of such devices, and at most `actual`'s.
// InvalidArgument: another word, or more than the device is.
absl::StatusOr<CudaProfile> ParseCudaProfile(std::string_view name, const CudaProfile& actual);

class CudaDevice final : public Device {
 public:
  // Device `index` of the runtime. `profile`: a name of ParseCudaProfile's; empty: the device's
  // own. Status codes of the runtime and of ParseCudaProfile.
  static absl::StatusOr<std::unique_ptr<CudaDevice>> Open(const CudaRuntime& runtime, int index,
                                                          std::string_view profile = {});
  ~CudaDevice() override;

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  std::string_view name() const override { return name_; }  // "cuda:0"
  absl::StatusOr<Buffer> Allocate(size_t bytes) override;
  absl::Status Upload(std::span<const std::byte> from, Buffer& to) override;
  absl::Status Download(const Buffer& from, std::span<std::byte> to) override;
  absl::Status Synchronize() override { return Noted(runtime_.Synchronize(stream_)); }
  size_t free_bytes() const override { return runtime_.FreeBytes(index_).value_or(0); }
  size_t allocated_bytes() const override;

  const CudaRuntime& runtime() const { return runtime_; }
  int index() const { return index_; }
  GpuStream stream() const { return stream_; }
  const CudaProperties& properties() const { return properties_; }
  const CudaProfile& profile() const { return profile_; }
  // Before the calling thread launches kernels there: CudaRuntime::Use.
  absl::Status Use() { return Noted(runtime_.Use(index_)); }
  // Passes a status on, and remembers the first that ends the use of this device (IsSticky).
  absl::Status Noted(absl::Status status);
  absl::Status health() const;  // OK, or that one
  // Called once, with that one, on the thread that met it; must not block. Before the device is
  // used.
  void OnFailure(std::function<void(const absl::Status&)> tell);

 private:
  struct State;
  CudaDevice(const CudaRuntime& runtime, int index);
  void Free(std::byte* data, size_t bytes) override;
  absl::Status UploadStreamed(std::span<const std::byte> from, std::byte* to);

  const CudaRuntime& runtime_;
  const int index_;
  const std::string name_;
  CudaProperties properties_;
  CudaProfile profile_;
  GpuStream stream_ = nullptr;
  const std::unique_ptr<State> state_;
};

}  // namespace assay
