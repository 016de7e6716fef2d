#include <gtest/gtest.h>
#include <stdlib.h>

#include <array>
#include <cstring>
#include <map>
#include <vector>

#include "tests/support/cuda_world.h"

namespace assay {
namespace {

// Pinned memory is slow to get: what was given back is kept for the next of that size.
std::map<size_t, std::vector<std::byte*>>& FreeBlocks() {
  static auto& blocks = *new std::map<size_t, std::vector<std::byte*>>();
  return blocks;
}
size_t Rounded(size_t bytes) { return (bytes + 255) / 256 * 256; }

[[noreturn]] void Die(const absl::Status& status) {
  fprintf(stderr, "tests on a GPU: %s\n", status.ToString().c_str());
  abort();
}

}  // namespace

const CudaRuntime& WorldCuda() { return *DriverCuda(); }

std::span<const emulated::Order> WorldOrders() {
  static constexpr std::array orders = {emulated::Order::kAscending};
  return orders;
}

void SetWorldOrder(emulated::Order) {}

int WorldRepeats() { return 100; }

std::string_view WorldProfile() {
  const char* const name = getenv("ASSAY_TEST_CUDA_PROFILE");
  return name == nullptr ? std::string_view() : std::string_view(name);
}

int WorldCompute() {
  static const int compute = [] {
    const auto device = CudaDevice::Open(WorldCuda(), 0, WorldProfile());
    if (!device.ok()) Die(device.status());
    return (*device)->profile().compute;
  }();
  return compute;
}

void* AllocateInWorld(size_t bytes) {
  std::vector<std::byte*>& blocks = FreeBlocks()[Rounded(bytes)];
  std::byte* memory = nullptr;
  if (blocks.empty()) {
    // 256 more: the driver promises no alignment of pinned memory. Never returned to it.
    const auto pinned = WorldCuda().AllocatePinned(Rounded(bytes) + 256);
    if (!pinned.ok()) Die(pinned.status());
    memory = *pinned + (256 - reinterpret_cast<uintptr_t>(*pinned) % 256) % 256;
  } else {
    memory = blocks.back();
    blocks.pop_back();
  }
  std::memset(memory, 0xff, Rounded(bytes));
  return memory;
}
void FreeInWorld(void* memory, size_t bytes) {
  FreeBlocks()[Rounded(bytes)].push_back(static_cast<std::byte*>(memory));
}

int Ran(int error) {
  if (error != 0) return error;
  const absl::Status status = WorldCuda().Synchronize(nullptr);
  if (status.ok()) return 0;
  ADD_FAILURE() << status;
  return -1;
}

}  // namespace assay
