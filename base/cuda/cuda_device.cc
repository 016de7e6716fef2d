#include "base/cuda/cuda_device.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"

namespace assay {
namespace {

struct Architecture {
  int compute;
  size_t shared_kib;  // of a block, with opt-in (CUDA C++ programming guide, table of capabilities)
};
constexpr std::array kArchitectures = {
    Architecture{75, 64},  Architecture{80, 163},  Architecture{86, 99},  Architecture{89, 99},
    Architecture{90, 227}, Architecture{100, 227}, Architecture{120, 99},
};

// Of a slot of the ring: uploads are of hundreds of megabytes, a few milliseconds each slot.
constexpr size_t kSlotBytes = size_t{16} << 20;

}  // namespace

// One half of the ring. `sent` is recorded when the copy out of it is in the stream.
struct Slot {
  PinnedBuffer memory;
  GpuEvent sent = nullptr;
  bool in_flight = false;
};

struct CudaDevice::State {
  std::atomic<size_t> allocated{0};  // a counter that nothing synchronises on
  mutable Mutex mutex;
  absl::Status health ABSL_GUARDED_BY(mutex);
  std::function<void(const absl::Status&)> tell ABSL_GUARDED_BY(mutex);
  Mutex ring_mutex;  // uploads take turns
  std::array<Slot, 2> ring ABSL_GUARDED_BY(ring_mutex);
};

absl::StatusOr<CudaProfile> ParseCudaProfile(std::string_view name, const CudaProfile& actual) {
  std::string known;
  for (const Architecture& architecture : kArchitectures) {
    const std::string spelled = absl::StrCat("sm", architecture.compute);
    absl::StrAppend(&known, known.empty() ? "" : ", ", spelled);
    if (name != spelled) continue;
    if (architecture.compute > actual.compute)
      return absl::InvalidArgumentError(absl::StrCat(
          "a device cannot play a newer one: profile=", spelled, " device=sm", actual.compute));
    return CudaProfile{architecture.compute,
                       std::min(architecture.shared_kib << 10, actual.shared_bytes_per_block)};
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown device profile: profile=", std::string(name), " known: ", known));
}

CudaDevice::CudaDevice(const CudaRuntime& runtime, int index)
    : runtime_(runtime),
      index_(index),
      name_(absl::StrCat("cuda:", index)),
      state_(std::make_unique<State>()) {}

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Open(const CudaRuntime& runtime, int index,
                                                             std::string_view profile) {
  std::unique_ptr<CudaDevice> device(new CudaDevice(runtime, index));
  ASSIGN_OR_RETURN(device->properties_, runtime.Properties(index));
  device->profile_ = {device->properties_.compute(), device->properties_.shared_bytes_per_block};
  if (!profile.empty()) {
    ASSIGN_OR_RETURN(device->profile_, ParseCudaProfile(profile, device->profile_));
  }
  ASSIGN_OR_RETURN(device->stream_, runtime.CreateStream(index, /*urgent=*/false));
  return device;
}

CudaDevice::~CudaDevice() {
  {
    const MutexLock lock(state_->ring_mutex);
    for (Slot& slot : state_->ring) {
      if (slot.sent != nullptr) runtime_.DestroyEvent(slot.sent);
    }
  }
  if (stream_ != nullptr) runtime_.DestroyStream(stream_);
}

absl::StatusOr<Buffer> CudaDevice::Allocate(size_t bytes) {
  if (bytes == 0) return Buffer();
  absl::StatusOr<std::byte*> data = runtime_.Allocate(index_, bytes);
  RETURN_IF_ERROR(Noted(data.status()));
  state_->allocated.fetch_add(bytes, std::memory_order_relaxed);
  return Buffer(*this, *data, bytes);
}

void CudaDevice::Free(std::byte* data, size_t bytes) {
  if (data == nullptr) return;
  state_->allocated.fetch_sub(bytes, std::memory_order_relaxed);
  runtime_.Free(index_, data, bytes);
}

absl::Status CudaDevice::Upload(std::span<const std::byte> from, Buffer& to) {
  if (from.size() > to.bytes())
    return absl::InvalidArgumentError(
        absl::StrCat("copy does not fit the buffer: bytes=", from.size(), " buffer=", to.bytes()));
  return Noted(UploadStreamed(from, to.data()));
}

absl::Status CudaDevice::UploadStreamed(std::span<const std::byte> from, std::byte* to) {
  const MutexLock lock(state_->ring_mutex);
  RETURN_IF_ERROR(runtime_.Use(index_));
  for (size_t done = 0, turn = 0; done < from.size(); ++turn) {
    Slot& slot = state_->ring[turn % 2];
    if (slot.sent == nullptr) {
      ASSIGN_OR_RETURN(slot.memory, PinnedBuffer::Create(runtime_, kSlotBytes));
      ASSIGN_OR_RETURN(slot.sent, runtime_.CreateEvent(index_));
    }
    if (slot.in_flight) RETURN_IF_ERROR(runtime_.WaitOnHost(slot.sent));
    const size_t part = std::min(kSlotBytes, from.size() - done);
    std::memcpy(slot.memory.data(), from.data() + done, part);
    RETURN_IF_ERROR(runtime_.Upload(slot.memory.data(), to + done, part, stream_));
    RETURN_IF_ERROR(runtime_.Record(slot.sent, stream_));
    slot.in_flight = true;
    done += part;
  }
  RETURN_IF_ERROR(runtime_.Synchronize(stream_));
  for (Slot& slot : state_->ring) slot.in_flight = false;
  return absl::OkStatus();
}

absl::Status CudaDevice::Download(const Buffer& from, std::span<std::byte> to) {
  if (to.size() > from.bytes())
    return absl::InvalidArgumentError(
        absl::StrCat("copy does not fit the buffer: bytes=", to.size(), " buffer=", from.bytes()));
  RETURN_IF_ERROR(Noted(runtime_.Download(from.data(), to.data(), to.size(), stream_)));
  return Synchronize();
}

size_t CudaDevice::allocated_bytes() const {
  return state_->allocated.load(std::memory_order_relaxed);
}

absl::Status CudaDevice::Noted(absl::Status status) {
  if (status.ok() || !IsSticky(status)) return status;
  std::function<void(const absl::Status&)> tell;
  {
    const MutexLock lock(state_->mutex);
    if (!state_->health.ok()) return status;
    state_->health = status;
    tell = state_->tell;
  }
  if (tell) tell(status);
  return status;
}

void CudaDevice::OnFailure(std::function<void(const absl::Status&)> tell) {
  const MutexLock lock(state_->mutex);
  state_->tell = std::move(tell);
}

absl::Status CudaDevice::health() const {
  const MutexLock lock(state_->mutex);
  return state_->health;
}

}  // namespace assay
