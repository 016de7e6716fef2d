#include "base/cuda/runtime.h"

#include <array>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr char kStickyUrl[] = "assay/cuda/sticky";

struct ErrorName {
  int code;
  absl::StatusCode status;
  bool sticky;
  const char* words;
};
// cudaError_t, as far as it asks for more than its number (CUDA 13.0, driver_types.h).
constexpr std::array kErrors = {
    ErrorName{1, absl::StatusCode::kInternal, false, "invalid value"},
    ErrorName{2, absl::StatusCode::kResourceExhausted, false, "out of memory"},
    ErrorName{3, absl::StatusCode::kUnavailable, false, "initialization failed"},
    ErrorName{9, absl::StatusCode::kInternal, false, "invalid launch configuration"},
    ErrorName{35, absl::StatusCode::kUnavailable, false, "no driver, or one older than CUDA 13"},
    ErrorName{46, absl::StatusCode::kUnavailable, false, "devices are busy or unavailable"},
    ErrorName{98, absl::StatusCode::kInternal, false, "invalid kernel"},
    ErrorName{100, absl::StatusCode::kUnavailable, false, "no CUDA device"},
    ErrorName{101, absl::StatusCode::kInternal, false, "no such device"},
    ErrorName{400, absl::StatusCode::kInternal, false, "a stream of another device"},
    ErrorName{209, absl::StatusCode::kInternal, false, "no kernel for this architecture"},
    ErrorName{214, absl::StatusCode::kInternal, true, "uncorrectable ECC error"},
    ErrorName{220, absl::StatusCode::kInternal, true, "uncorrectable NVLink error"},
    ErrorName{226, absl::StatusCode::kInternal, true, "contained memory error"},
    ErrorName{700, absl::StatusCode::kInternal, true, "illegal address"},
    ErrorName{701, absl::StatusCode::kInternal, false, "launch out of resources"},
    ErrorName{702, absl::StatusCode::kInternal, true, "launch timed out"},
    ErrorName{709, absl::StatusCode::kInternal, true, "context is destroyed"},
    ErrorName{710, absl::StatusCode::kInternal, true, "assertion of a kernel failed"},
    ErrorName{714, absl::StatusCode::kInternal, true, "hardware stack error"},
    ErrorName{715, absl::StatusCode::kInternal, true, "illegal instruction"},
    ErrorName{716, absl::StatusCode::kInternal, true, "misaligned address"},
    ErrorName{717, absl::StatusCode::kInternal, true, "invalid address space"},
    ErrorName{718, absl::StatusCode::kInternal, true, "invalid program counter"},
    ErrorName{719, absl::StatusCode::kInternal, true, "launch failure"},
    ErrorName{911, absl::StatusCode::kInternal, true, "error of an external device"},
    ErrorName{999, absl::StatusCode::kInternal, true, "unknown error"},
};

}  // namespace

absl::Status CudaStatus(int error, std::string_view op) {
  if (error == 0) return absl::OkStatus();
  ErrorName found = {error, absl::StatusCode::kInternal, false, "unexpected error"};
  for (const ErrorName& name : kErrors) {
    if (name.code == error) found = name;
  }
  absl::Status status(found.status, absl::StrCat("CUDA: ", found.words, ": error=", error, " in ",
                                                 std::string(op)));
  if (found.sticky) status.SetPayload(kStickyUrl, absl::Cord("1"));
  return status;
}

bool IsSticky(const absl::Status& status) { return status.GetPayload(kStickyUrl).has_value(); }

absl::StatusOr<GpuBuffer> GpuBuffer::Create(const CudaRuntime& runtime, int device, size_t bytes) {
  GpuBuffer buffer;
  ASSIGN_OR_RETURN(buffer.data_, runtime.Allocate(device, bytes));
  buffer.runtime_ = &runtime;
  buffer.device_ = device;
  buffer.bytes_ = bytes;
  return buffer;
}

GpuBuffer& GpuBuffer::operator=(GpuBuffer&& other) noexcept {
  std::swap(runtime_, other.runtime_);
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

absl::StatusOr<PinnedBuffer> PinnedBuffer::Create(const CudaRuntime& runtime, size_t bytes) {
  PinnedBuffer buffer;
  ASSIGN_OR_RETURN(buffer.data_, runtime.AllocatePinned(bytes));
  buffer.runtime_ = &runtime;
  buffer.bytes_ = bytes;
  return buffer;
}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(runtime_, other.runtime_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ != nullptr) runtime_->FreePinned(data_);
}

GpuBuffer::~GpuBuffer() {
  if (data_ != nullptr) runtime_->Free(device_, data_, bytes_);
}

}  // namespace assay
