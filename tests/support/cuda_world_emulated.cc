#include <array>

#include "tests/support/cuda_world.h"

namespace assay {

const CudaRuntime& WorldCuda() { return EmulatedCuda(); }

std::span<const emulated::Order> WorldOrders() {
  using emulated::Order;
  static constexpr std::array orders = {Order::kAscending, Order::kDescending, Order::kShuffled};
  return orders;
}

void SetWorldOrder(emulated::Order order) { emulated::set_order(order); }

int WorldRepeats() { return 1; }

std::string_view WorldProfile() { return {}; }
int WorldCompute() { return 90; }

void* AllocateInWorld(size_t bytes) { return emulated::AllocateDevice(bytes); }
void FreeInWorld(void* memory, size_t bytes) { emulated::FreeDevice(memory, bytes); }
int Ran(int error) { return error; }

}  // namespace assay
