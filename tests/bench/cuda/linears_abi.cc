// Linear layers and FP8 products of kernels_abi.h.
#include <algorithm>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "quant/kernels/cuda/cublas_lt.h"
#include "quant/kernels/cuda/quantize.h"
#include "tests/bench/cuda/kernels_abi.h"
#include "tests/bench/cuda/kernels_state.h"

namespace assay {
namespace {

constexpr int kInt4Group = 128;

// Shared by all linears; what was outgrown stays, as graphs may point to it.
struct Scratch {
  std::vector<Buffer> all;
  std::map<int, size_t> bytes;
  CudaScratch now;
};
Scratch& SharedScratch() {
  static auto& scratch = *new Scratch();
  return scratch;
}

template <typename T>
absl::Status Grow(int which, size_t count, T*& pointer) {
  Scratch& scratch = SharedScratch();
  const size_t bytes = std::max<size_t>(count, 1) * (std::is_void_v<T> ? 1 : 4);
  if (bytes <= scratch.bytes[which]) return absl::OkStatus();
  CudaDevice& device = *State().device;
  ASSIGN_OR_RETURN(Buffer buffer, device.Allocate(bytes));
  RETURN_IF_ERROR(device.runtime().Fill(buffer.data(), 0, bytes, device.stream()));
  RETURN_IF_ERROR(device.Synchronize());
  pointer = reinterpret_cast<T*>(buffer.data());
  scratch.bytes[which] = bytes;
  scratch.all.push_back(std::move(buffer));
  return absl::OkStatus();
}

absl::Status Reserve(const CudaLinear& linear, int rows) {
  CudaScratch& now = SharedScratch().now;
  RETURN_IF_ERROR(Grow(0, linear.expanded_bytes(rows), now.expanded));
  RETURN_IF_ERROR(Grow(1, linear.padded_bytes(rows), now.padded));
  RETURN_IF_ERROR(Grow(2, linear.partial_floats(rows), now.partial));
  RETURN_IF_ERROR(Grow(4, linear.workspace_bytes(rows), now.workspace));
  return Grow(3, linear.counters(rows), now.counters);
}

absl::Status QuantizeInto(const LinearProblem& problem, const void* weight,
                          CudaLinear::Parts& parts) {
  const auto n = static_cast<int>(problem.shape[0]), k = static_cast<int>(problem.shape[1]);
  const auto count = static_cast<size_t>(n) * static_cast<size_t>(k);
  CudaDevice& device = *State().device;
  const std::string_view scheme = problem.scheme->name();
  if (scheme == "int4_group") {
    ASSIGN_OR_RETURN(parts.codes, device.Allocate(count / 2));
    ASSIGN_OR_RETURN(parts.scales, device.Allocate(sizeof(uint16_t) * static_cast<size_t>(n) *
                                                   static_cast<size_t>(DivideUp(k, kInt4Group))));
    const AssayQuantizeInt4 call = {
        weight,    reinterpret_cast<uint8_t*>(parts.codes.data()), parts.scales.data(), n, k,
        kInt4Group};
    return assay_quantize_int4(&call, device.stream()) == 0 ? device.Synchronize()
                                                            : absl::InternalError(assay_error());
  }
  if (scheme != "int8_channel" && scheme != "fp8_e4m3")
    return absl::UnimplementedError(
        absl::StrCat("no quantizer on the device for scheme ", std::string(scheme)));
  ASSIGN_OR_RETURN(parts.codes, device.Allocate(count));
  ASSIGN_OR_RETURN(parts.scales, device.Allocate(sizeof(float) * static_cast<size_t>(n)));
  const AssayQuantize call = {weight,
                              reinterpret_cast<uint8_t*>(parts.codes.data()),
                              reinterpret_cast<float*>(parts.scales.data()),
                              n,
                              k,
                              scheme == "int8_channel" ? 2 : 3};
  return assay_quantize_rows(&call, device.stream()) == 0 ? device.Synchronize()
                                                          : absl::InternalError(assay_error());
}

absl::StatusOr<std::unique_ptr<const CudaLinear>> Uploaded(const LinearProblem& problem,
                                                           const void* host_codes,
                                                           std::span<const std::byte> scales) {
  CudaDevice& device = *State().device;
  ASSIGN_OR_RETURN(const StoredWeight stored, StorageOf(*problem.scheme, problem.shape));
  const size_t bytes = static_cast<size_t>(stored.n) * static_cast<size_t>(stored.k) *
                       static_cast<size_t>(StorageBits(stored.storage)) / 8;
  CudaLinear::Parts parts;
  ASSIGN_OR_RETURN(parts.codes, device.Allocate(bytes));
  ASSIGN_OR_RETURN(parts.scales, device.Allocate(scales.size()));
  RETURN_IF_ERROR(device.Upload({static_cast<const std::byte*>(host_codes), bytes}, parts.codes));
  RETURN_IF_ERROR(device.Upload(scales, parts.scales));
  return CudaLinear::Adopt(State().Backend(), problem, std::move(parts));
}

struct Fp8Product {
  const CublasLt& library;
  LtProblem problem;
  std::vector<LtAlgorithm> algorithms;
  Buffer workspace;
};

absl::StatusOr<std::unique_ptr<Fp8Product>> MakeFp8(const LtProblem& problem) {
  static const auto& library = *new auto(CublasLt::Load(""));
  RETURN_IF_ERROR(library.status());
  if (const char* const why = LtRefuses(problem, State().device->profile().compute))
    return absl::UnimplementedError(why);
  std::unique_ptr<Fp8Product> product(new Fp8Product{**library, problem, {}, {}});
  ASSIGN_OR_RETURN(product->algorithms, (*library)->Algorithms(problem));
  ASSIGN_OR_RETURN(product->workspace, State().device->Allocate(CublasLt::kWorkspaceBytes));
  return product;
}

}  // namespace

absl::StatusOr<LinearProblem> ProblemOf(std::string_view scheme, std::string_view activation, int n,
                                        int k) {
  LinearProblem problem = {.shape = {n, k}, .device = DeviceKind::kCuda};
  ASSIGN_OR_RETURN(problem.scheme, FindScheme(scheme));
  for (const ActivationMode mode : {ActivationMode::kA16, ActivationMode::kA8Token,
                                    ActivationMode::kFp8Token, ActivationMode::kFp8Block}) {
    problem.activation = mode;
    if (Name(mode) == activation) return problem;
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown activation: ", std::string(activation)));
}

absl::StatusOr<std::unique_ptr<const CudaLinear>> QuantizedOnDevice(const LinearProblem& problem,
                                                                    const void* weight) {
  CudaLinear::Parts parts;
  // The weight was made on the default stream, which ours does not wait for.
  RETURN_IF_ERROR(State().device->runtime().Synchronize(nullptr));
  RETURN_IF_ERROR(QuantizeInto(problem, weight, parts));
  return CudaLinear::Adopt(State().Backend(), problem, std::move(parts));
}

}  // namespace assay

using assay::CudaLinear;
using assay::Report;

void* assay_linear_quantize(const char* scheme, const char* activation, int n, int k,
                            const void* weight) {
  const auto problem = assay::ProblemOf(scheme, activation, n, k);
  if (Report(problem.status()) != 0) return nullptr;
  return const_cast<CudaLinear*>(assay::ReportPointer(assay::QuantizedOnDevice(*problem, weight)));
}
void* assay_linear_upload(const char* scheme, int n, int k, const void* host_codes,
                          const void* host_scales, size_t scale_bytes) {
  const auto problem = assay::ProblemOf(scheme, "a16", n, k);
  if (Report(problem.status()) != 0) return nullptr;
  return const_cast<CudaLinear*>(assay::ReportPointer(assay::Uploaded(
      *problem, host_codes, {static_cast<const std::byte*>(host_scales), scale_bytes})));
}
void assay_linear_destroy(void* linear) { delete static_cast<CudaLinear*>(linear); }
size_t assay_linear_bytes(const void* linear) {
  return static_cast<const CudaLinear*>(linear)->bytes();
}
int assay_linear_form(const void* linear, int rows) {
  return static_cast<int>(static_cast<const CudaLinear*>(linear)->input(rows));
}
int assay_linear_prepare(void* linear, int rows) {
  return Report(assay::Reserve(*static_cast<CudaLinear*>(linear), rows));
}
int assay_linear_run(void* linear, const void* x, const float* x_scales, int rows, float* y,
                     void* stream) {
  return Report(static_cast<CudaLinear*>(linear)->Run({.x = x,
                                                       .x_scales = x_scales,
                                                       .rows = rows,
                                                       .y = y,
                                                       .scratch = assay::SharedScratch().now,
                                                       .context = {.stream = stream}}));
}

void* assay_fp8_create(int m, int n, int k) {
  return assay::ReportPointer(assay::MakeFp8({.m = m,
                                              .n = n,
                                              .k = k,
                                              .operands = assay::LtType::kE4M3,
                                              .out = assay::LtType::kBf16,
                                              .scales = assay::LtScales::kRows}));
}
void assay_fp8_destroy(void* product) { delete static_cast<assay::Fp8Product*>(product); }
int assay_fp8_algorithms(const void* product) {
  return static_cast<int>(static_cast<const assay::Fp8Product*>(product)->algorithms.size());
}
int assay_fp8_run(void* product, const AssayFp8* args, void* stream) {
  auto* const fp8 = static_cast<assay::Fp8Product*>(product);
  return Report(fp8->library.Run(fp8->problem,
                                 {.w = args->w,
                                  .x = args->x,
                                  .w_scales = args->w_scales,
                                  .x_scales = args->x_scales,
                                  .y = args->y,
                                  .workspace = fp8->workspace.data(),
                                  .stream = stream},
                                 fp8->algorithms[static_cast<size_t>(args->algorithm)]));
}
