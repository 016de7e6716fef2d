// Streams are the calling thread: what is put into one has happened when the call returns, or lies
// in the graph that is captured.
#include <atomic>
#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/cuda/emulator.h"
#include "base/cuda/runtime.h"

namespace assay {
namespace {

using emulated::Enqueue;
using Clock = std::chrono::steady_clock;

class Emulated final : public CudaRuntime {
 public:
  absl::StatusOr<int> CountDevices() const override { return 1; }
  absl::StatusOr<CudaProperties> Properties(int device) const override {
    if (device != 0) return CudaStatus(101, absl::StrCat("properties device=", device));
    CudaProperties to;
    to.name = "emulated";
    to.compute_major = 9;
    to.multiprocessors = 4;
    to.memory_bytes = kMemoryBytes;
    to.l2_bytes = 1 << 20;
    to.shared_bytes_per_block = 227 << 10;
    to.driver_version = to.runtime_version = 13000;
    return to;
  }
  absl::StatusOr<size_t> FreeBytes(int) const override { return kMemoryBytes - used_; }

  absl::StatusOr<std::byte*> Allocate(int, size_t bytes) const override {
    void* const memory = used_ + bytes <= kMemoryBytes ? emulated::AllocateDevice(bytes) : nullptr;
    if (memory == nullptr)
      return CudaStatus(2, absl::StrCat("allocate bytes=", bytes, " free=", kMemoryBytes - used_));
    used_ += bytes;
    return static_cast<std::byte*>(memory);
  }
  void Free(int, std::byte* memory, size_t bytes) const override {
    used_ -= bytes;
    emulated::FreeDevice(memory, bytes);
  }
  absl::StatusOr<std::byte*> AllocatePinned(size_t bytes) const override {
    return new std::byte[bytes];
  }
  void FreePinned(std::byte* memory) const override { delete[] memory; }

  absl::StatusOr<GpuStream> CreateStream(int, bool) const override { return GpuStream{nullptr}; }
  void DestroyStream(GpuStream) const override {}
  absl::Status Synchronize(GpuStream) const override { return absl::OkStatus(); }
  absl::Status Upload(const void* from, void* to, size_t bytes, GpuStream) const override {
    Enqueue([=] { std::memcpy(to, from, bytes); });
    return absl::OkStatus();
  }
  absl::Status Download(const void* from, void* to, size_t bytes, GpuStream) const override {
    Enqueue([=] { std::memcpy(to, from, bytes); });
    return absl::OkStatus();
  }
  absl::Status Fill(void* to, int byte, size_t bytes, GpuStream) const override {
    Enqueue([=] { std::memset(to, byte, bytes); });
    return absl::OkStatus();
  }

  absl::StatusOr<GpuEvent> CreateEvent(int) const override { return new Clock::time_point(); }
  void DestroyEvent(GpuEvent event) const override {
    delete static_cast<Clock::time_point*>(event);
  }
  absl::Status Record(GpuEvent event, GpuStream) const override {
    *static_cast<Clock::time_point*>(event) = Clock::now();
    return absl::OkStatus();
  }
  absl::Status WaitFor(GpuStream, GpuEvent) const override { return absl::OkStatus(); }
  absl::StatusOr<double> Milliseconds(GpuEvent from, GpuEvent to) const override {
    return std::chrono::duration<double, std::milli>(*static_cast<Clock::time_point*>(to) -
                                                     *static_cast<Clock::time_point*>(from))
        .count();
  }

  absl::Status BeginCapture(GpuStream) const override {
    emulated::BeginCapture();
    return absl::OkStatus();
  }
  absl::StatusOr<GpuGraph> EndCapture(GpuStream) const override {
    return new std::function<void()>(emulated::EndCapture());
  }
  absl::Status Launch(GpuGraph graph, GpuStream) const override {
    (*static_cast<std::function<void()>*>(graph))();
    return absl::OkStatus();
  }
  void DestroyGraph(GpuGraph graph) const override {
    delete static_cast<std::function<void()>*>(graph);
  }

 private:
  static constexpr size_t kMemoryBytes = size_t{1} << 30;
  mutable std::atomic<size_t> used_ = 0;
};

}  // namespace

const CudaRuntime& EmulatedCuda() {
  static const Emulated runtime;
  return runtime;
}

}  // namespace assay
