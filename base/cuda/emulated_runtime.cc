// Streams are the calling thread: what is put into one has happened when the call returns, or lies
// in the graph that is captured.
#include <array>
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
  explicit Emulated(int devices) : devices_(devices) {}
  absl::StatusOr<int> CountDevices() const override { return devices_; }
  absl::StatusOr<CudaProperties> Properties(int device) const override {
    if (device < 0 || device >= devices_)
      return CudaStatus(101, absl::StrCat("properties device=", device));
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
  absl::StatusOr<size_t> FreeBytes(int device) const override {
    RETURN_IF_ERROR(Check(device, "memory_info"));
    return kMemoryBytes - Used(device);
  }
  absl::Status Use(int device) const override { return Check(device, "set_device"); }

  absl::StatusOr<std::byte*> Allocate(int device, size_t bytes) const override {
    RETURN_IF_ERROR(Check(device, "allocate"));
    std::atomic<size_t>& used = Used(device);
    void* const memory = used + bytes <= kMemoryBytes ? emulated::AllocateDevice(bytes) : nullptr;
    if (memory == nullptr)
      return CudaStatus(2, absl::StrCat("allocate bytes=", bytes, " free=", kMemoryBytes - used));
    used += bytes;
    return static_cast<std::byte*>(memory);
  }
  void Free(int device, std::byte* memory, size_t bytes) const override {
    Used(device) -= bytes;
    emulated::FreeDevice(memory, bytes);
  }
  absl::StatusOr<std::byte*> AllocatePinned(size_t bytes) const override {
    return new std::byte[bytes];
  }
  void FreePinned(std::byte* memory) const override { delete[] memory; }

  absl::StatusOr<GpuStream> CreateStream(int device, bool) const override {
    RETURN_IF_ERROR(Check(device, "create_stream"));
    return emulated::StreamOf(device);
  }
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
  absl::Status WaitOnHost(GpuEvent) const override { return absl::OkStatus(); }
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
  absl::Status Check(int device, const char* op) const {
    if (device < 0 || device >= devices_)
      return CudaStatus(101, absl::StrCat(op, " device=", device));
    emulated::SetDevice(device);  // as the driver's side does
    return absl::OkStatus();
  }
  std::atomic<size_t>& Used(int device) const { return used_[static_cast<size_t>(device)]; }

  const int devices_;
  mutable std::array<std::atomic<size_t>, 2> used_ = {};
};

}  // namespace

const CudaRuntime& EmulatedCuda(int devices) {
  static const Emulated one(1), two(2);
  return devices == 2 ? two : one;
}

}  // namespace assay
