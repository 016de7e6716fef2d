// Runs CUDA kernels on the CPU, so that their index arithmetic, rounding and synchronization are
// tested where there is no GPU (docs/adr/0013-cuda-kernels-run-on-the-cpu-too.md). Every thread of
// a block is a fiber; it runs until it meets the others at a barrier or a warp operation. Blocks
// run one after the other.
//
// It is stricter than a GPU where that finds mistakes:
//   - shared memory and fresh device memory are filled with 0xff (NaN) before they are used;
//   - asynchronous copies arrive when they are waited for, not earlier;
//   - the order of the threads between two barriers changes with set_order, so that a missing
//     barrier changes results;
//   - warp operations need all 32 lanes, vector accesses their alignment, barriers every thread:
//     otherwise the process ends with the place and the state of the threads;
//   - device allocations end at an inaccessible page;
//   - grids and shared memory that a device does not have end the process.
// What it does not have: time, races between blocks, the memory model, denormals flushed by
// approximate functions.
//
// Thread rule: launches are serialized by a lock.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>

namespace assay::emulated {

struct Shape3 {
  int x = 1, y = 1, z = 1;
};

// Of the running thread. REQUIRES: inside of a kernel.
int ThreadX();
Shape3 Block();
int BlockThreads();
Shape3 Grid();

// All threads of the block; what the others wrote before is visible after.
void BarrierOfBlock();
// A warp operation: every lane leaves `bytes` (at most 64) of `mine`; afterwards all lanes see all
// of them, [32][64], until they take part in the next one. `what` is named in errors.
const std::byte* ExchangeInWarp(const void* mine, size_t bytes, std::string_view what);

// Shared memory of the block: one piece per `tag`, the same for all of its threads.
std::byte* SharedPiece(const void* tag, size_t bytes);
std::byte* DynamicShared();

// cp.async of `bytes` to `to`; zeros where `valid` is false. Executed by the wait that covers it.
void CopyAsync(void* to, const void* from, size_t bytes, bool valid);
void CopyAsyncCommit();
void CopyAsyncWait(int groups_left);

// Ends the process, naming the thread.
[[noreturn]] void Die(std::string_view what);

enum class Order { kAscending, kDescending, kShuffled };
// Of the fibers of a warp and the warps of a block, in the launches that follow.
void set_order(Order order, uint32_t seed = 1);

// Static and dynamic shared memory of a block in the launches that follow: 227 KiB at first, that
// of 9.0; at most that.
void set_most_shared(size_t bytes);

struct LaunchShape {
  Shape3 grid;
  int threads = 0;  // a multiple of 32, at most 1024
  size_t shared_bytes = 0;
};
// Runs `thread` as every thread of every block. Between BeginCapture and EndCapture it is kept
// instead.
void Launch(const LaunchShape& shape, std::function<void()> thread);
void Enqueue(std::function<void()> work);  // a copy, say: now, or captured

// Devices differ in their streams: launches into one of another device than the thread's are
// refused, as the driver does.
void SetDevice(int device);  // of the calling thread; 0 at first
void* StreamOf(int device);
bool IsOfThisDevice(const void* stream);  // null is

// What this thread launched in between, in order.
void BeginCapture();
std::function<void()> EndCapture();

// Device memory, 256-byte aligned, full of 0xff; what lies behind the `bytes`, rounded up to 256,
// is inaccessible. nullptr: there is not so much.
void* AllocateDevice(size_t bytes);
void FreeDevice(void* memory, size_t bytes);

}  // namespace assay::emulated
