#include "engine/model/cuda/gpus.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "engine/model/cuda/cuda_bert.h"
#include "engine/model/cuda/cuda_bert_weights.h"
#include "engine/model/cuda/cuda_llama_weights.h"
#include "quant/kernels/cuda/cuda_encode.h"

namespace assay {
namespace {

constexpr int kOldest = 75;  // compute capability: the first with INT8 tensor cores

// Families that GPUs compute: what of them, and how they are built. Others are the CPU's.
struct GpuFamily {
  std::string_view name;  // ModelSpec::family
  absl::Status (*takes)(const ModelSpec& spec);
  absl::StatusOr<std::unique_ptr<const Model>> (*build)(const CudaBackend& backend,
                                                        const CudaOpsKernels& ops,
                                                        const ModelSpec& spec,
                                                        const Checkpoint& checkpoint,
                                                        LinearMap linears);
};
constexpr std::array kFamilies = {
    GpuFamily{"llama", CudaTakesLlama,
              [](const CudaBackend& backend, const CudaOpsKernels& ops, const ModelSpec& spec,
                 const Checkpoint& checkpoint, LinearMap linears) {
                return BuildCudaLlama(backend, ops, spec, checkpoint, std::move(linears), {});
              }},
    GpuFamily{"bert", CudaTakesBert, BuildCudaBert},
};

absl::StatusOr<const GpuFamily*> GpuFamilyOf(const ModelSpec& spec) {
  std::string known;
  for (const GpuFamily& family : kFamilies) {
    if (family.name == spec.family) return &family;
    absl::StrAppend(&known, known.empty() ? "" : ", ", std::string(family.name));
  }
  return absl::UnimplementedError(absl::StrCat(
      "no family that is served on a GPU: family=", spec.family, " supported=", known));
}

Half HalfFor(const CudaDevice& device) {
  return device.profile().compute >= 80 ? Half::kBf16 : Half::kF16;
}

struct Wanted {
  bool all = false;
  std::vector<int> indices;
  bool Names(int index) const {
    return std::find(indices.begin(), indices.end(), index) != indices.end();
  }
};

absl::StatusOr<Wanted> ParseDevices(const std::string& devices) {
  if (devices == "auto") return Wanted{.all = true};
  if (devices == "none") return Wanted{};
  Wanted wanted;
  for (const auto part : absl::StrSplit(devices, ',')) {
    int index = -1;
    if (!absl::StartsWith(part, "cuda:") || !absl::SimpleAtoi(part.substr(5), &index) || index < 0)
      return absl::InvalidArgumentError(absl::StrCat(
          "devices are auto, none, or names such as cuda:0,cuda:1: devices=", devices));
    if (!wanted.Names(index)) wanted.indices.push_back(index);
  }
  return wanted;
}

absl::Status CheckNamed(const Wanted& wanted, int count, const std::string& why_none) {
  for (const int index : wanted.indices) {
    if (index < count) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("no such device: cuda:", index, why_none.empty() ? "; there are " : "; ",
                     why_none.empty() ? absl::StrCat(count) : why_none));
  }
  return absl::OkStatus();
}

// One row of codes, which has one right answer.
absl::Status TryKernel(const CudaWorld& world, CudaDevice& device) {
  const std::array<float, 4> row = {-127, 1, 0, 64};
  RETURN_IF_ERROR(device.Use());
  ASSIGN_OR_RETURN(Buffer from, device.Allocate(sizeof(row)));
  ASSIGN_OR_RETURN(Buffer codes, device.Allocate(row.size()));
  ASSIGN_OR_RETURN(Buffer scales, device.Allocate(sizeof(float)));
  RETURN_IF_ERROR(device.Upload(std::as_bytes(std::span(row)), from));
  const QuantizeRowsArgs args = {.from = from.data(),
                                 .codes = reinterpret_cast<uint8_t*>(codes.data()),
                                 .scales = reinterpret_cast<float*>(scales.data()),
                                 .rows = 1,
                                 .k = 4,
                                 .from_stride = 4,
                                 .codes_stride = 4};
  RETURN_IF_ERROR(device.Noted(
      CudaStatus(world.linear.quantize_rows(args, {.stream = device.stream()}), "first kernel")));
  std::array<int8_t, 4> got = {};
  RETURN_IF_ERROR(device.Download(codes, std::as_writable_bytes(std::span(got))));
  if (got == std::array<int8_t, 4>{-127, 1, 0, 64}) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("the first kernel gave wrong numbers: ", got[0], " ",
                                          got[1], " ", got[2], " ", got[3],
                                          " instead of -127 1 0 64"));
}

}  // namespace

const CudaWorld* DriverWorld() {
  const CudaRuntime* const runtime = DriverCuda();
  if (runtime == nullptr) return nullptr;
  static const CudaWorld world = {*runtime, *DriverLinearKernels(), *DriverOpsKernels(),
                                  /*has_cublas_lt=*/true};
  return &world;
}

GpuBackend::GpuBackend(const CudaWorld& world, std::unique_ptr<CudaDevice> device,
                       std::unique_ptr<LtProducts> lt)
    : world_(world),
      device_(std::move(device)),
      lt_(std::move(lt)),
      half_(HalfFor(*device_)),
      kernel_("cuda", backend()) {}

absl::StatusOr<std::unique_ptr<GpuBackend>> GpuBackend::Open(const CudaWorld& world, int index,
                                                             std::string_view profile,
                                                             const std::string& lt_directory) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device,
                   CudaDevice::Open(world.runtime, index, profile));
  if (device->profile().compute < kOldest)
    return absl::UnimplementedError(
        absl::StrCat("compute capability 7.5 or newer is needed: sm_", device->profile().compute));
  RETURN_IF_ERROR(TryKernel(world, *device));
  std::unique_ptr<LtProducts> lt;
  if (world.has_cublas_lt) {
    std::error_code ignored;  // a directory that cannot be made is said when a file cannot be
    if (!lt_directory.empty()) std::filesystem::create_directories(lt_directory, ignored);
    ASSIGN_OR_RETURN(lt, LtProducts::Open(*device, "", {.cache_directory = lt_directory}));
  }
  return std::unique_ptr<GpuBackend>(new GpuBackend(world, std::move(device), std::move(lt)));
}

absl::Status GpuBackend::Takes(const ModelSpec& spec) const {
  ASSIGN_OR_RETURN(const GpuFamily* const family, GpuFamilyOf(spec));
  // A block of decode attention has keys and values of 64 positions twice in shared memory.
  constexpr size_t kSharedOfWideHeads = size_t{72} << 10;
  constexpr int kWideHead = 128;
  if (spec.head_dim > kWideHead && device_->profile().shared_bytes_per_block < kSharedOfWideHeads)
    return absl::UnimplementedError(
        absl::StrCat("heads above ", kWideHead, " need ", kSharedOfWideHeads,
                     " bytes of shared memory: head_dim=", spec.head_dim,
                     " bytes=", device_->profile().shared_bytes_per_block));
  return family->takes(spec);
}

absl::Status GpuBackend::Supports(const QuantScheme& scheme, const Shape& shape,
                                  ActivationMode activation) const {
  // They would be rounded, and the proof would find weights that are not the checkpoint's.
  if (scheme.name() == "f32")
    return absl::UnimplementedError("weights on a GPU have 16 bit at most, not f32: bf16 does");
  return kernel_.Supports({shape, &scheme, activation, DeviceKind::kCuda});
}

absl::StatusOr<QuantizedTensor> GpuBackend::Encode(const QuantScheme& scheme,
                                                   TensorView weight) const {
  absl::StatusOr<QuantizedTensor> encoded = CudaEncode(backend(), scheme, weight);
  const absl::Status& status = encoded.status();
  // What is wrong with a weight the scheme says in its words.
  if (absl::IsUnimplemented(status) || absl::IsResourceExhausted(status) ||
      absl::IsInvalidArgument(status))
    return scheme.Encode(weight);
  return encoded;
}

absl::StatusOr<QuantizedLinear> GpuBackend::MakeLinear(const QuantizedTensor& w, Tensor bias,
                                                       ActivationMode activation) const {
  if (w.scheme == nullptr) return absl::InvalidArgumentError("the weight has no scheme");
  RETURN_IF_ERROR(w.scheme->DecodeRows(w, 0, 0, {}));  // its tensors are those of the scheme
  RETURN_IF_ERROR(device_->Use());
  return MakeCudaQuantizedLinear(kernel_, w, bias, activation);
}

absl::StatusOr<std::unique_ptr<const Model>> GpuBackend::Build(const ModelFamily&,
                                                               const ModelSpec& spec,
                                                               const Checkpoint& checkpoint,
                                                               LinearMap linears) const {
  ASSIGN_OR_RETURN(const GpuFamily* const family, GpuFamilyOf(spec));
  RETURN_IF_ERROR(device_->Use());
  return family->build(backend(), world_.ops, spec, checkpoint, std::move(linears));
}

std::string GpuBackend::fingerprint() const {
  const CudaProperties& p = device_->properties();
  return absl::StrCat(p.name, " sm_", device_->profile().compute, " driver=", p.driver_version,
                      " runtime=", p.runtime_version);
}

absl::StatusOr<Gpus> Gpus::Open(const CudaWorld* world, const Options& options) {
  Gpus gpus;
  ASSIGN_OR_RETURN(const Wanted wanted, ParseDevices(options.devices));
  if (!wanted.all && wanted.indices.empty()) return gpus;
  int count = 0;
  if (world == nullptr) {
    gpus.why_none_ = "this binary was built without CUDA";
  } else {
    const absl::StatusOr<int> counted = world->runtime.CountDevices();
    if (counted.ok()) {
      count = *counted;
    } else {
      gpus.why_none_ = std::string(counted.status().message());
    }
  }
  RETURN_IF_ERROR(CheckNamed(wanted, count, gpus.why_none_));
  for (int i = 0; i < count; ++i) {
    Found found = {.name = absl::StrCat("cuda:", i)};
    ASSIGN_OR_RETURN(found.properties, world->runtime.Properties(i));
    found.profile = {found.properties.compute(), found.properties.shared_bytes_per_block};
    if (wanted.all || wanted.Names(i)) {
      absl::StatusOr<std::unique_ptr<GpuBackend>> backend =
          GpuBackend::Open(*world, i, options.profile, options.lt_directory);
      if (!backend.ok() && (!wanted.all || absl::IsInvalidArgument(backend.status())))
        return Annotate(backend.status(), found.name);
      if (backend.ok()) {
        found.backend = *std::move(backend);
        found.profile = found.backend->device().profile();
      } else {
        found.why_not = std::string(backend.status().message());
      }
    } else {
      found.why_not = absl::StrCat("not among the devices to use: devices=", options.devices);
    }
    gpus.all_.push_back(std::move(found));
  }
  return gpus;
}

}  // namespace assay
