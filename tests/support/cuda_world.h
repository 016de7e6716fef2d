// The world that a test of kernels is compiled for (assay_cuda_test in cmake/AssayCuda.cmake): the
// emulator, or the driver with a real device. One source serves both: its code lies in `namespace
// assay::ASSAY_WORLD`, where the kernels' names are that world's, and reads and writes the memory
// of DeviceArray (device_array.h) directly: on a real device that is pinned memory of the host's,
// which kernels see through the same pointers.
//
// Without a device, all tests of the driver's world are skipped, with the reason (gpu_main.cc).
// ASSAY_TEST_CUDA_PROFILE=sm86 there: as on such a device (base/cuda/cuda_device.h), for kernels
// built for it.
#pragma once
#include <span>

#include "base/cuda/cuda_device.h"
#include "base/cuda/emulator.h"
#include "base/cuda/runtime.h"
#include "base/cuda/simt_math.h"

namespace assay {

// On the host 16-bit numbers are the emulator's, and so is the order of threads, which nobody
// chooses on a device.
namespace cuda {
using emulated::Bf16;
using emulated::F16;
using emulated::FromFloat;
using emulated::Order;
using emulated::Pack2;
using emulated::ToFloat;
}  // namespace cuda

namespace world = ASSAY_WORLD;

const CudaRuntime& WorldCuda();
// What a test is repeated for: three orders of threads, or one.
std::span<const emulated::Order> WorldOrders();
void SetWorldOrder(emulated::Order order);
// How often what depends on time is tried: once, or many times on a device.
int WorldRepeats();
std::string_view WorldProfile();  // of ParseCudaProfile; empty: the device's own
int WorldCompute();               // of the profile: 90 = 9.0
// Whether the world has arithmetic in such numbers; a test has nothing to check where not.
inline bool WorldTakes(Half half) { return half == Half::kF16 || WorldCompute() >= 80; }

inline constexpr char kNoBf16[] = "SKIPPED: bf16 needs compute capability 8.0";

// Of kernels: 256-byte aligned, full of 0xff.
void* AllocateInWorld(size_t bytes);
void FreeInWorld(void* memory, size_t bytes);
// Passes on what a launching function returned, when the kernel has run; what it met on its way is
// a failure of the test.
int Ran(int error);

}  // namespace assay
