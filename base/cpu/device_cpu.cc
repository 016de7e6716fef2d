// The host processor as a Device. Large allocations are mapped on their own, 2 MiB aligned and
// advised to use huge pages: page faults are what a virtual machine is slowest at
// (docs/performance.md). The last, partial one is served in small pages: a model of a hundred
// layers would lose a hundred halves of huge pages.
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"
#include "base/device.h"

namespace assay {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = size_t{4} << 10;
constexpr size_t kAlignment = 64;

size_t RoundUp(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

class CpuDeviceImpl final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  std::string_view name() const override { return "cpu"; }

  absl::StatusOr<Buffer> Allocate(size_t bytes) override {
    if (bytes == 0) return Buffer();
    std::byte* data =
        bytes >= kHugePage
            ? MapHuge(bytes)
            : static_cast<std::byte*>(std::aligned_alloc(kAlignment, RoundUp(bytes, kAlignment)));
    if (data == nullptr) {
      return absl::ResourceExhaustedError(
          absl::StrCat("cannot allocate host memory: bytes=", bytes));
    }
    allocated_.fetch_add(bytes, std::memory_order_relaxed);
    return Buffer(*this, data, bytes);
  }
  absl::Status Upload(std::span<const std::byte> from, Buffer& to) override {
    if (from.size() > to.bytes()) return Overrun(from.size(), to.bytes());
    std::memcpy(to.data(), from.data(), from.size());
    return absl::OkStatus();
  }
  absl::Status Download(const Buffer& from, std::span<std::byte> to) override {
    if (to.size() > from.bytes()) return Overrun(to.size(), from.bytes());
    std::memcpy(to.data(), from.data(), to.size());
    return absl::OkStatus();
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }
  size_t free_bytes() const override { return AvailableMemoryBytes(); }
  size_t allocated_bytes() const override { return allocated_.load(std::memory_order_relaxed); }

 private:
  static absl::Status Overrun(size_t want, size_t have) {
    return absl::InvalidArgumentError(
        absl::StrCat("copy does not fit the buffer: bytes=", want, " buffer=", have));
  }
  static std::byte* MapHuge(size_t bytes) {
    const size_t mapped = RoundUp(bytes, kPage);
    // Map one huge page more than needed and give back the unaligned ends.
    void* raw = mmap(nullptr, mapped + kHugePage, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    auto begin = reinterpret_cast<uintptr_t>(raw);
    const uintptr_t aligned = RoundUp(begin, kHugePage);
    if (aligned > begin) munmap(raw, aligned - begin);
    const size_t tail = begin + kHugePage - aligned;
    if (tail > 0) munmap(reinterpret_cast<void*>(aligned + mapped), tail);
    auto* data = reinterpret_cast<std::byte*>(aligned);
    madvise(data, bytes / kHugePage * kHugePage,
            MADV_HUGEPAGE);  // advice only: a kernel without huge pages serves small ones
    return data;
  }
  void Free(std::byte* data, size_t bytes) override {
    if (data == nullptr) return;
    allocated_.fetch_sub(bytes, std::memory_order_relaxed);
    if (bytes >= kHugePage) {
      munmap(data, RoundUp(bytes, kPage));
    } else {
      std::free(data);
    }
  }

  std::atomic<size_t> allocated_{0};  // a counter that nothing synchronises on
};

}  // namespace

Device& CpuDevice() {
  static CpuDeviceImpl* const device =
      new CpuDeviceImpl;  // never destroyed: buffers may outlive main
  return *device;
}

}  // namespace assay
