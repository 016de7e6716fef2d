// What kernels of this project are written in: CUDA C++, or, compiled as plain C++, the emulator of
// base/cuda/emulator.h. One source for both; what differs stands here and in simt_math.h, nowhere
// else.
//
// A kernel file (.cu) opens `namespace assay::ASSAY_SIMT`, defines kernels with ASSAY_KERNEL and,
// for each, a function that launches it. It includes no header of the C++ library's that nvcc would
// have to see through, and no Abseil.
//
// Warp operations (Shuffle*, Ballot, Mma*, LoadMatrix*) want all 32 lanes. SyncThreads wants every
// thread of the block.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define ASSAY_SIMT cuda
#define ASSAY_KERNEL(threads) __global__ void __launch_bounds__(threads)
// With the registers that let so many blocks share a multiprocessor.
#define ASSAY_KERNEL_FOR_BLOCKS(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define ASSAY_DEVICE __device__ __forceinline__
#define ASSAY_BOTH __host__ __device__ __forceinline__
#define ASSAY_UNROLL _Pragma("unroll")
#define ASSAY_PRAGMA(text) _Pragma(#text)
#define ASSAY_UNROLL_BY(count) ASSAY_PRAGMA(unroll count)  // 1: not, where registers are scarce
// T name[count] in shared memory; and all of the dynamic shared memory, as bytes, 16-byte aligned.
#define ASSAY_SHARED(T, name, count) __shared__ T name[count]
#define ASSAY_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#include <cstring>
#include <tuple>
#include <utility>

#include "base/cuda/emulator.h"
#define ASSAY_SIMT emulated
#define ASSAY_KERNEL(threads) static void
#define ASSAY_KERNEL_FOR_BLOCKS(threads, blocks) static void
#define ASSAY_DEVICE inline
#define ASSAY_BOTH inline
#define ASSAY_UNROLL
#define ASSAY_UNROLL_BY(count)
#define ASSAY_SHARED(T, name, count) \
  static const char name##_tag = 0;  \
  T* const name = reinterpret_cast<T*>(SharedPiece(&name##_tag, sizeof(T) * (count)))
#define ASSAY_DYNAMIC_SHARED(name) \
  unsigned char* const name = reinterpret_cast<unsigned char*>(DynamicShared())
#endif

// Declares a function of kernel files in both namespaces: `int Norm(const NormArgs&, const
// LaunchContext&)`. Inside of namespace assay.
#define ASSAY_LAUNCHER(...) \
  namespace cuda {          \
  __VA_ARGS__;              \
  }                         \
  namespace emulated {      \
  __VA_ARGS__;              \
  }

namespace assay {

// A stream of the backend (cudaStream_t); opaque to everybody else.
using GpuStream = void*;

// The 16-bit type of activations on a device: bf16 from compute capability 8.0 on.
enum class Half : int { kF16, kBf16 };

// How a kernel is launched. Whoever launches fills in grid, threads and shared_bytes.
struct LaunchGrid {
  int x = 1, y = 1, z = 1;
  int threads = 0;
  size_t shared_bytes = 0;  // dynamic
};

// Where a kernel is launched, handed down from who owns the stream.
struct LaunchContext {
  GpuStream stream = nullptr;
  bool pdl = false;  // programmatic dependent launch: kernels that call PdlWait may begin early
};

}  // namespace assay

namespace assay::ASSAY_SIMT {

constexpr int kWarp = 32;

struct alignas(16) Quad {
  uint32_t x, y, z, w;
};
struct alignas(8) Pair {
  uint32_t x, y;
};

#if defined(__CUDACC__)

ASSAY_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }
ASSAY_DEVICE int BlockX() { return static_cast<int>(blockIdx.x); }
ASSAY_DEVICE int BlockY() { return static_cast<int>(blockIdx.y); }
ASSAY_DEVICE int BlockZ() { return static_cast<int>(blockIdx.z); }
ASSAY_DEVICE int GridX() { return static_cast<int>(gridDim.x); }
ASSAY_DEVICE int GridY() { return static_cast<int>(gridDim.y); }
ASSAY_DEVICE int GridZ() { return static_cast<int>(gridDim.z); }
ASSAY_DEVICE int ThreadsOfBlock() { return static_cast<int>(blockDim.x); }
ASSAY_DEVICE void SyncThreads() { __syncthreads(); }
ASSAY_DEVICE void SyncWarp() { __syncwarp(); }
ASSAY_DEVICE void FenceDevice() { __threadfence(); }
template <typename T>
ASSAY_DEVICE T ShuffleXor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <typename T>
ASSAY_DEVICE T Shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
ASSAY_DEVICE uint32_t Ballot(bool value) { return __ballot_sync(0xffffffffu, value); }
ASSAY_DEVICE float AtomicAdd(float* to, float value) { return atomicAdd(to, value); }
ASSAY_DEVICE int AtomicAdd(int* to, int value) { return atomicAdd(to, value); }
ASSAY_DEVICE int AtomicMax(int* to, int value) { return atomicMax(to, value); }

// 16 and 8 bytes; `from` and `to` are aligned to that.
ASSAY_DEVICE Quad Load16(const void* from) { return *static_cast<const Quad*>(from); }
ASSAY_DEVICE void Store16(void* to, Quad value) { *static_cast<Quad*>(to) = value; }
ASSAY_DEVICE Pair Load8(const void* from) { return *static_cast<const Pair*>(from); }
ASSAY_DEVICE void Store8(void* to, Pair value) { *static_cast<Pair*>(to) = value; }
// From memory that nothing writes during the launch.
ASSAY_DEVICE Quad Load16Constant(const void* from) {
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  return {v.x, v.y, v.z, v.w};
}

// To shared memory, 16 bytes; zeros where `valid` is false (`from` is not touched then). Before
// compute capability 8.0 the copy is made at once.
ASSAY_DEVICE void CopyAsync16(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(from),
               "r"(bytes)
               : "memory");
#else
  const Quad zero = {0, 0, 0, 0};
  Store16(to, valid ? Load16(from) : zero);
#endif
}
ASSAY_DEVICE void CopyAsyncCommit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
// Until at most kGroupsLeft of this thread's committed groups are under way. Other threads see them
// after SyncThreads.
template <int kGroupsLeft>
ASSAY_DEVICE void CopyAsyncWait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroupsLeft) : "memory");
#endif
}

// Programmatic dependent launch, rules: wait before the first read of what an earlier kernel wrote
// and before any write; trigger when nothing is left to load. No effect before compute capability
// 9.0 or where the launch did not ask for it.
ASSAY_DEVICE void PdlWait() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
#endif
}
ASSAY_DEVICE void PdlTrigger() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// 0, or the cudaError_t that the launch met.
template <typename... Parameters, typename... Arguments>
int Launch(const LaunchGrid& grid, const LaunchContext& context, void (*kernel)(Parameters...),
           const Arguments&... arguments) {
  if (grid.shared_bytes > (48u << 10)) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(grid.shared_bytes));
    if (error != cudaSuccess) return static_cast<int>(error);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(context.stream);
  config.attrs = &attribute;
  config.numAttrs = context.pdl ? 1 : 0;
  return static_cast<int>(
      cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

#else  // emulated

ASSAY_DEVICE int ThreadIndex() { return ThreadX(); }
ASSAY_DEVICE int BlockX() { return Block().x; }
ASSAY_DEVICE int BlockY() { return Block().y; }
ASSAY_DEVICE int BlockZ() { return Block().z; }
ASSAY_DEVICE int GridX() { return Grid().x; }
ASSAY_DEVICE int GridY() { return Grid().y; }
ASSAY_DEVICE int GridZ() { return Grid().z; }
ASSAY_DEVICE int ThreadsOfBlock() { return BlockThreads(); }
ASSAY_DEVICE void SyncThreads() { BarrierOfBlock(); }
ASSAY_DEVICE void SyncWarp() {
  const char nothing = 0;
  ExchangeInWarp(&nothing, 1, "SyncWarp");
}
ASSAY_DEVICE void FenceDevice() {}
template <typename T>
T FromLane(const std::byte* slots, int lane) {
  T value;
  std::memcpy(&value, slots + static_cast<ptrdiff_t>(lane % kWarp) * 64, sizeof(T));
  return value;
}
template <typename T>
T ShuffleXor(T value, int mask) {
  return FromLane<T>(ExchangeInWarp(&value, sizeof(T), "ShuffleXor"), (ThreadX() % kWarp) ^ mask);
}
template <typename T>
T Shuffle(T value, int lane) {
  return FromLane<T>(ExchangeInWarp(&value, sizeof(T), "Shuffle"), lane);
}
ASSAY_DEVICE uint32_t Ballot(bool value) {
  const std::byte* const slots = ExchangeInWarp(&value, sizeof(value), "Ballot");
  uint32_t bits = 0;
  for (int lane = 0; lane < kWarp; ++lane)
    bits |= static_cast<uint32_t>(FromLane<bool>(slots, lane)) << lane;
  return bits;
}
template <typename T>
T AtomicAdd(T* to, T value) {
  const T before = *to;
  *to = before + value;
  return before;
}
ASSAY_DEVICE int AtomicMax(int* to, int value) {
  const int before = *to;
  if (value > before) *to = value;
  return before;
}

template <typename T>
T LoadAligned(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(T) != 0) Die("a vector load is not aligned");
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}
template <typename T>
void StoreAligned(void* to, T value) {
  if (reinterpret_cast<uintptr_t>(to) % sizeof(T) != 0) Die("a vector store is not aligned");
  std::memcpy(to, &value, sizeof(T));
}
ASSAY_DEVICE Quad Load16(const void* from) { return LoadAligned<Quad>(from); }
ASSAY_DEVICE Quad Load16Constant(const void* from) { return LoadAligned<Quad>(from); }
ASSAY_DEVICE void Store16(void* to, Quad value) { StoreAligned(to, value); }
ASSAY_DEVICE Pair Load8(const void* from) { return LoadAligned<Pair>(from); }
ASSAY_DEVICE void Store8(void* to, Pair value) { StoreAligned(to, value); }
ASSAY_DEVICE void CopyAsync16(void* to, const void* from, bool valid) {
  CopyAsync(to, from, 16, valid);
}
template <int kGroupsLeft>
void CopyAsyncWait() {
  emulated::CopyAsyncWait(kGroupsLeft);
}
ASSAY_DEVICE void PdlWait() {}
ASSAY_DEVICE void PdlTrigger() {}

template <typename... Parameters, typename... Arguments>
int Launch(const LaunchGrid& grid, const LaunchContext& context, void (*kernel)(Parameters...),
           const Arguments&... arguments) {
  constexpr int kInvalidResourceHandle = 400;
  if (!IsOfThisDevice(context.stream)) return kInvalidResourceHandle;
  emulated::Launch(
      {{grid.x, grid.y, grid.z}, grid.threads, grid.shared_bytes},
      [kernel, values = std::tuple<Parameters...>(arguments...)] { std::apply(kernel, values); });
  return 0;
}

#endif

}  // namespace assay::ASSAY_SIMT
