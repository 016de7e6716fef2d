#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "base/cuda/runtime.h"

namespace assay {
namespace {

cudaStream_t Of(GpuStream stream) { return static_cast<cudaStream_t>(stream); }

class Cudart final : public CudaRuntime {
 public:
  absl::StatusOr<int> CountDevices() const override {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0)
      return CudaStatus(error == cudaSuccess ? cudaErrorNoDevice : error, "count_devices");
    return count;
  }

  absl::StatusOr<CudaProperties> Properties(int device) const override {
    cudaDeviceProp from{};
    const std::string op = absl::StrCat("properties device=", device);
    RETURN_IF_ERROR(CudaStatus(cudaGetDeviceProperties(&from, device), op));
    CudaProperties to;
    to.name = from.name;
    to.compute_major = from.major;
    to.compute_minor = from.minor;
    to.multiprocessors = from.multiProcessorCount;
    to.memory_bytes = from.totalGlobalMem;
    to.l2_bytes = static_cast<size_t>(from.l2CacheSize);
    to.shared_bytes_per_block = from.sharedMemPerBlockOptin;
    RETURN_IF_ERROR(CudaStatus(cudaDriverGetVersion(&to.driver_version), op));
    RETURN_IF_ERROR(CudaStatus(cudaRuntimeGetVersion(&to.runtime_version), op));
    return to;
  }

  absl::StatusOr<size_t> FreeBytes(int device) const override {
    size_t free = 0, total = 0;
    RETURN_IF_ERROR(Use(device));
    RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free, &total), "memory_info"));
    return free;
  }

  absl::Status Use(int device) const override {
    return CudaStatus(cudaSetDevice(device), "set_device");
  }

  absl::StatusOr<std::byte*> Allocate(int device, size_t bytes) const override {
    RETURN_IF_ERROR(Use(device));
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes);
    if (error != cudaSuccess) {
      cudaGetLastError();  // not sticky: out of memory is ours to answer
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      return CudaStatus(error, absl::StrCat("allocate bytes=", bytes, " free=", free));
    }
    return static_cast<std::byte*>(memory);
  }
  void Free(int device, std::byte* memory, size_t) const override {
    cudaSetDevice(device);
    cudaFree(memory);
  }
  absl::StatusOr<std::byte*> AllocatePinned(size_t bytes) const override {
    void* memory = nullptr;
    RETURN_IF_ERROR(
        CudaStatus(cudaMallocHost(&memory, bytes), absl::StrCat("allocate_pinned bytes=", bytes)));
    return static_cast<std::byte*>(memory);
  }
  void FreePinned(std::byte* memory) const override { cudaFreeHost(memory); }

  absl::StatusOr<GpuStream> CreateStream(int device, bool urgent) const override {
    RETURN_IF_ERROR(Use(device));
    int least = 0, greatest = 0;
    RETURN_IF_ERROR(
        CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream_priorities"));
    cudaStream_t stream = nullptr;
    RETURN_IF_ERROR(CudaStatus(
        cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, urgent ? greatest : least),
        "create_stream"));
    return static_cast<GpuStream>(stream);
  }
  void DestroyStream(GpuStream stream) const override { cudaStreamDestroy(Of(stream)); }
  absl::Status Synchronize(GpuStream stream) const override {
    return CudaStatus(cudaStreamSynchronize(Of(stream)), "synchronize");
  }

  absl::Status Upload(const void* from, void* to, size_t bytes, GpuStream stream) const override {
    return Copy(from, to, bytes, cudaMemcpyHostToDevice, stream, "upload bytes=");
  }
  absl::Status Download(const void* from, void* to, size_t bytes, GpuStream stream) const override {
    return Copy(from, to, bytes, cudaMemcpyDeviceToHost, stream, "download bytes=");
  }
  absl::Status Fill(void* to, int byte, size_t bytes, GpuStream stream) const override {
    const cudaError_t error = cudaMemsetAsync(to, byte, bytes, Of(stream));
    if (error == cudaSuccess) return absl::OkStatus();
    return CudaStatus(error, absl::StrCat("fill bytes=", bytes));
  }

  absl::StatusOr<GpuEvent> CreateEvent(int device) const override {
    RETURN_IF_ERROR(Use(device));
    cudaEvent_t event = nullptr;
    RETURN_IF_ERROR(CudaStatus(cudaEventCreate(&event), "create_event"));
    return static_cast<GpuEvent>(event);
  }
  void DestroyEvent(GpuEvent event) const override {
    cudaEventDestroy(static_cast<cudaEvent_t>(event));
  }
  absl::Status Record(GpuEvent event, GpuStream stream) const override {
    return CudaStatus(cudaEventRecord(static_cast<cudaEvent_t>(event), Of(stream)), "record_event");
  }
  absl::Status WaitFor(GpuStream stream, GpuEvent event) const override {
    return CudaStatus(cudaStreamWaitEvent(Of(stream), static_cast<cudaEvent_t>(event), 0),
                      "wait_for_event");
  }
  absl::Status WaitOnHost(GpuEvent event) const override {
    return CudaStatus(cudaEventSynchronize(static_cast<cudaEvent_t>(event)), "synchronize_event");
  }
  absl::StatusOr<double> Milliseconds(GpuEvent from, GpuEvent to) const override {
    float out = 0;
    RETURN_IF_ERROR(
        CudaStatus(cudaEventSynchronize(static_cast<cudaEvent_t>(to)), "synchronize_event"));
    RETURN_IF_ERROR(CudaStatus(
        cudaEventElapsedTime(&out, static_cast<cudaEvent_t>(from), static_cast<cudaEvent_t>(to)),
        "elapsed_time"));
    return static_cast<double>(out);
  }

  absl::Status BeginCapture(GpuStream stream) const override {
    return CudaStatus(cudaStreamBeginCapture(Of(stream), cudaStreamCaptureModeThreadLocal),
                      "begin_capture");
  }
  absl::StatusOr<GpuGraph> EndCapture(GpuStream stream) const override {
    cudaGraph_t graph = nullptr;
    RETURN_IF_ERROR(CudaStatus(cudaStreamEndCapture(Of(stream), &graph), "end_capture"));
    cudaGraphExec_t executable = nullptr;
    const cudaError_t error = cudaGraphInstantiate(&executable, graph, 0);
    cudaGraphDestroy(graph);
    RETURN_IF_ERROR(CudaStatus(error, "instantiate_graph"));
    return static_cast<GpuGraph>(executable);
  }
  absl::Status Launch(GpuGraph graph, GpuStream stream) const override {
    return CudaStatus(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), Of(stream)),
                      "launch_graph");
  }
  void DestroyGraph(GpuGraph graph) const override {
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph));
  }

 private:
  static absl::Status Copy(const void* from, void* to, size_t bytes, cudaMemcpyKind kind,
                           GpuStream stream, const char* op) {
    const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, Of(stream));
    return error == cudaSuccess ? absl::OkStatus() : CudaStatus(error, absl::StrCat(op, bytes));
  }
};

}  // namespace

const CudaRuntime* DriverCuda() {
  static const Cudart runtime;
  return &runtime;
}

}  // namespace assay
