// What the host asks of CUDA: devices, memory, copies, streams, events, graphs. Two
// implementations: the driver (runtime_cudart.cc, where a toolkit was found at build time) and the
// emulator (emulated_runtime.cc, in tests). Kernels have their own functions; this is all the rest.
//
// Every function names itself and its operands in the error. Status codes: ResourceExhausted (out
// of memory, with bytes asked for and free), Unavailable (no driver, no device), Internal
// (everything else). An error that the driver calls sticky ends the process's use of that device:
// is_sticky tells.
//
// Thread-safe. Streams, events and graphs are used by one thread at a time.
#pragma once
#include <cstddef>
#include <string>
#include <string_view>

#include "base/cuda/simt.h"
#include "base/status.h"

namespace assay {

using GpuEvent = void*;  // cudaEvent_t
using GpuGraph = void*;  // an executable graph

struct CudaProperties {
  std::string name;  // "NVIDIA H100 80GB HBM3"
  int compute_major = 0, compute_minor = 0;
  int multiprocessors = 0;
  size_t memory_bytes = 0, l2_bytes = 0;
  size_t shared_bytes_per_block = 0;                                  // with opt-in
  int driver_version = 0, runtime_version = 0;                        // 13000 = 13.0
  int compute() const { return 10 * compute_major + compute_minor; }  // 90
};

class CudaRuntime {
 public:
  virtual ~CudaRuntime() = default;
  virtual absl::StatusOr<int> CountDevices() const = 0;  // at least 1
  virtual absl::StatusOr<CudaProperties> Properties(int device) const = 0;
  virtual absl::StatusOr<size_t> FreeBytes(int device) const = 0;
  // Makes it the calling thread's device: a thread launches into streams of that one alone. All
  // that takes a `device` does so, too, and leaves it at that: a device that nobody names is not
  // touched.
  virtual absl::Status Use(int device) const = 0;

  // 256-byte aligned, not zeroed.
  virtual absl::StatusOr<std::byte*> Allocate(int device, size_t bytes) const = 0;
  virtual void Free(int device, std::byte* memory, size_t bytes) const = 0;
  // Host memory that copies from and to the device do not stage.
  virtual absl::StatusOr<std::byte*> AllocatePinned(size_t bytes) const = 0;
  virtual void FreePinned(std::byte* memory) const = 0;

  // `urgent`: before the others where both could run.
  virtual absl::StatusOr<GpuStream> CreateStream(int device, bool urgent) const = 0;
  virtual void DestroyStream(GpuStream stream) const = 0;
  virtual absl::Status Synchronize(GpuStream stream) const = 0;

  // In the stream's order. Host memory must stay until the stream has come by.
  virtual absl::Status Upload(const void* from, void* to, size_t bytes, GpuStream stream) const = 0;
  virtual absl::Status Download(const void* from, void* to, size_t bytes,
                                GpuStream stream) const = 0;
  virtual absl::Status Fill(void* to, int byte, size_t bytes, GpuStream stream) const = 0;

  virtual absl::StatusOr<GpuEvent> CreateEvent(int device) const = 0;
  virtual void DestroyEvent(GpuEvent event) const = 0;
  virtual absl::Status Record(GpuEvent event, GpuStream stream) const = 0;
  virtual absl::Status WaitFor(GpuStream stream, GpuEvent event) const = 0;
  virtual absl::Status WaitOnHost(GpuEvent event) const = 0;  // the calling thread waits
  virtual absl::StatusOr<double> Milliseconds(GpuEvent from, GpuEvent to) const = 0;

  // What is put into the stream in between is kept instead of done.
  virtual absl::Status BeginCapture(GpuStream stream) const = 0;
  virtual absl::StatusOr<GpuGraph> EndCapture(GpuStream stream) const = 0;
  virtual absl::Status Launch(GpuGraph graph, GpuStream stream) const = 0;
  virtual void DestroyGraph(GpuGraph graph) const = 0;
};

// nullptr: this binary was built without a CUDA toolkit.
const CudaRuntime* DriverCuda();
// One or two devices of compute capability 9.0, with 1 GiB each; of tests.
const CudaRuntime& EmulatedCuda(int devices = 1);

// Of an error code of the driver's, as launching functions return it. `op` says what was tried,
// with its shapes: "rms_norm rows=4 width=576". OK for 0.
absl::Status CudaStatus(int error, std::string_view op);
// Whether nothing works any more on the device that gave it.
bool IsSticky(const absl::Status& status);

// Device memory, from begin to end one allocation. Move-only; the runtime outlives it.
class GpuBuffer {
 public:
  GpuBuffer() = default;
  static absl::StatusOr<GpuBuffer> Create(const CudaRuntime& runtime, int device, size_t bytes);
  GpuBuffer(GpuBuffer&& other) noexcept { *this = std::move(other); }
  GpuBuffer& operator=(GpuBuffer&& other) noexcept;
  ~GpuBuffer();
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  const CudaRuntime* runtime_ = nullptr;
  int device_ = 0;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// Host memory that copies do not stage. Move-only; the runtime outlives it.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  static absl::StatusOr<PinnedBuffer> Create(const CudaRuntime& runtime, size_t bytes);
  PinnedBuffer(PinnedBuffer&& other) noexcept { *this = std::move(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();
  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  const CudaRuntime* runtime_ = nullptr;
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace assay
