#include "quant/kernels/cuda/lt_products.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/log.h"

namespace assay {
namespace {

std::string Words(const LtShape& shape, int rows) {
  return absl::StrCat("m=", rows, " n=", shape.n, " k=", shape.k,
                      " operands=", static_cast<int>(shape.operands),
                      " scales=", static_cast<int>(shape.scales));
}

size_t BytesOf(LtType type) {
  switch (type) {
    case LtType::kS8:
    case LtType::kE4M3:
      return 1;
    case LtType::kF16:
    case LtType::kBf16:
      return 2;
    case LtType::kF32:
    case LtType::kS32:
      return 4;
  }
  return 4;
}

// Of the largest bucket whose results are no more than that.
int MostRows(const LtShape& shape, size_t most_result_bytes) {
  int rows = LtProduct::kFewestRows;
  const auto bytes = [&](int of) { return sizeof(float) * static_cast<size_t>(shape.n) * of; };
  while (rows < LtProduct::kMostRows && bytes(2 * rows) <= most_result_bytes) rows *= 2;
  return rows;
}

LtFoundOn FoundOn(const CudaDevice& device, const CublasLt& library) {
  const CudaProperties& properties = device.properties();
  return {properties.name, device.profile().compute, properties.driver_version, library.version()};
}

}  // namespace

size_t LtProduct::BucketOf(int rows) const {
  size_t bucket = 0;
  while (kFewestRows << bucket < rows) ++bucket;
  return std::min(bucket, of_bucket_.size() - 1);
}

size_t LtProduct::workspace_bytes(int rows) const {
  size_t most = 0;
  for (size_t i = 0; i <= BucketOf(rows); ++i) most = std::max(most, of_bucket_[i].workspace_bytes);
  return most;
}

absl::Status LtProduct::Refuses(int rows) const {
  const MutexLock lock(mu_);
  const auto [entry, added] = refuses_.try_emplace(rows);
  if (!added) return entry->second;
  const LtProblem problem = ProblemOf(shape_, rows);
  const LtAlgorithm& algorithm = of_bucket_[BucketOf(rows)];
  const absl::StatusOr<size_t> workspace = library_.Check(problem, algorithm);
  if (!workspace.ok()) {
    entry->second = absl::UnimplementedError(workspace.status().message());
  } else if (*workspace > algorithm.workspace_bytes) {
    entry->second = absl::UnimplementedError(
        absl::StrCat("it needs more workspace than its bucket: bytes=", *workspace));
  }
  if (!entry->second.ok())
    Log(LogLevel::kWarning, "cuBLASLt is not used for some rows",
        {{"product", Words(shape_, rows)}, {"reason", std::string(entry->second.message())}});
  return entry->second;
}

absl::Status LtProduct::Run(int rows, const LtCall& call) const {
  RETURN_IF_ERROR(Refuses(rows));
  return library_.Run(ProblemOf(shape_, rows), call, of_bucket_[BucketOf(rows)]);
}

// What is multiplied while algorithms are timed; made when the first is.
struct LtProducts::Operands {
  Buffer w, x, y, w_scales, x_scales, workspace;

  absl::Status Make(CudaDevice& device, const LtShape& shape, int rows) {
    if (w.bytes() != 0) return absl::OkStatus();
    const auto n = static_cast<size_t>(shape.n), k = static_cast<size_t>(shape.k),
               m = static_cast<size_t>(rows), blocks = (k + 127) / 128;
    ASSIGN_OR_RETURN(w, device.Allocate(n * k * BytesOf(shape.operands)));
    ASSIGN_OR_RETURN(x, device.Allocate(m * k * BytesOf(shape.operands)));
    ASSIGN_OR_RETURN(y, device.Allocate(m * n * sizeof(float)));
    ASSIGN_OR_RETURN(w_scales, device.Allocate(n * blocks * sizeof(float)));
    ASSIGN_OR_RETURN(x_scales, device.Allocate(m * blocks * sizeof(float)));
    ASSIGN_OR_RETURN(workspace, device.Allocate(CublasLt::kWorkspaceBytes));
    // Bytes that are numbers in every type: 1.5 in E4M3, 1.06 in f16, 0.011 in bf16 and f32.
    for (const Buffer* buffer : {&w, &x, &w_scales, &x_scales})
      RETURN_IF_ERROR(device.Noted(
          device.runtime().Fill(buffer->data(), 0x3c, buffer->bytes(), device.stream())));
    return device.Synchronize();
  }
};

LtProducts::LtProducts(CudaDevice& device, std::unique_ptr<const CublasLt> library,
                       LtOptions options)
    : device_(device),
      library_(std::move(library)),
      options_(std::move(options)),
      choices_(options_.cache_directory, FoundOn(device, *library_)) {}

absl::StatusOr<std::unique_ptr<LtProducts>> LtProducts::Open(CudaDevice& device,
                                                             const std::string& path,
                                                             LtOptions options) {
  absl::StatusOr<std::unique_ptr<const CublasLt>> library = CublasLt::Load(path);
  if (!library.ok()) {
    Log(LogLevel::kWarning, "products without cuBLASLt",
        {{"device", std::string(device.name())},
         {"reason", std::string(library.status().message())}});
    return std::unique_ptr<LtProducts>();
  }
  Log(LogLevel::kInfo, "products by cuBLASLt",
      {{"device", std::string(device.name())}, {"version", absl::StrCat((*library)->version())}});
  return Create(device, *std::move(library), std::move(options));
}

absl::StatusOr<std::unique_ptr<LtProducts>> LtProducts::Create(
    CudaDevice& device, std::unique_ptr<const CublasLt> library, LtOptions options) {
  std::unique_ptr<LtProducts> made(new LtProducts(device, std::move(library), std::move(options)));
  const CudaRuntime& runtime = device.runtime();
  ASSIGN_OR_RETURN(made->stream_, runtime.CreateStream(device.index(), /*urgent=*/false));
  ASSIGN_OR_RETURN(made->begin_, runtime.CreateEvent(device.index()));
  ASSIGN_OR_RETURN(made->end_, runtime.CreateEvent(device.index()));
  return made;
}

LtProducts::~LtProducts() {
  const CudaRuntime& runtime = device_.runtime();
  for (const GpuEvent event : {begin_, end_}) {
    if (event != nullptr) runtime.DestroyEvent(event);
  }
  if (stream_ != nullptr) runtime.DestroyStream(stream_);
}

absl::StatusOr<const LtProduct*> LtProducts::Tune(const LtShape& shape) {
  const MutexLock lock(mu_);
  if (const auto found = products_.find(shape); found != products_.end())
    return found->second.get();
  absl::StatusOr<std::unique_ptr<const LtProduct>> product = Find(shape);
  if (std::exchange(changed_, false)) {
    Log(LogLevel::kInfo, "cuBLASLt algorithms timed",
        {{"n", absl::StrCat(shape.n)},
         {"k", absl::StrCat(shape.k)},
         {"operands", absl::StrCat(static_cast<int>(shape.operands))}});
    if (const absl::Status saved = choices_.Save(); !saved.ok())
      Log(LogLevel::kWarning, "choices of cuBLASLt algorithms are not kept",
          {{"error", saved.ToString()}});
  }
  if (!product.ok()) {
    RETURN_IF_ERROR(device_.health());
    if (IsSticky(product.status())) return product.status();
    const bool expected = absl::IsUnimplemented(product.status());
    Log(expected ? LogLevel::kInfo : LogLevel::kWarning, "own kernels instead of cuBLASLt",
        {{"n", absl::StrCat(shape.n)},
         {"k", absl::StrCat(shape.k)},
         {"reason", std::string(product.status().message())}});
    if (absl::IsResourceExhausted(product.status())) return nullptr;
    product = std::unique_ptr<const LtProduct>();
  }
  return (products_[shape] = *std::move(product)).get();
}

absl::StatusOr<std::unique_ptr<const LtProduct>> LtProducts::Find(const LtShape& shape) {
  const int compute = device_.profile().compute, most = MostRows(shape, options_.most_result_bytes);
  if (const char* why = LtRefuses(ProblemOf(shape, most), compute); why != nullptr)
    return absl::UnimplementedError(why);
  Operands operands;
  std::vector<LtAlgorithm> of_bucket;
  for (int rows = LtProduct::kFewestRows; rows <= most; rows *= 2) {
    ASSIGN_OR_RETURN(of_bucket.emplace_back(), Choose(shape, rows, operands));
  }
  return std::make_unique<const LtProduct>(*library_, shape, std::move(of_bucket));
}

absl::StatusOr<LtAlgorithm> LtProducts::Choose(const LtShape& shape, int rows, Operands& operands) {
  if (std::optional<LtAlgorithm> known = choices_.Find(shape, rows); known) {
    const absl::StatusOr<size_t> workspace = library_->Check(ProblemOf(shape, rows), *known);
    if (workspace.ok() && *workspace <= CublasLt::kWorkspaceBytes) {
      known->workspace_bytes = *workspace;
      return *known;
    }
  }
  RETURN_IF_ERROR(operands.Make(device_, shape, MostRows(shape, options_.most_result_bytes)));
  ASSIGN_OR_RETURN(const LtAlgorithm fastest, Fastest(shape, rows, operands));
  choices_.Add(shape, rows, fastest);
  changed_ = true;
  return fastest;
}

absl::StatusOr<LtAlgorithm> LtProducts::Fastest(const LtShape& shape, int rows,
                                                Operands& operands) {
  const LtProblem problem = ProblemOf(shape, rows);
  ASSIGN_OR_RETURN(const std::vector<LtAlgorithm> algorithms, library_->Algorithms(problem));
  const LtCall call = {.w = operands.w.data(),
                       .x = operands.x.data(),
                       .w_scales = reinterpret_cast<const float*>(operands.w_scales.data()),
                       .x_scales = reinterpret_cast<const float*>(operands.x_scales.data()),
                       .y = operands.y.data(),
                       .workspace = operands.workspace.data(),
                       .stream = stream_};
  const LtAlgorithm* fastest = nullptr;
  double least = 0;
  absl::Status failure;
  for (const LtAlgorithm& algorithm : algorithms) {
    const auto run = [&] { return library_->Run(problem, call, algorithm); };
    absl::StatusOr<double> milliseconds =
        options_.timer ? options_.timer(algorithm, run) : Time(run);
    // What the library says of a failure is less than what the device does.
    if (!milliseconds.ok()) {
      if (IsSticky(milliseconds.status())) return device_.Noted(milliseconds.status());
      failure = milliseconds.status();
      const absl::Status settled = device_.Noted(device_.runtime().Synchronize(stream_));
      if (IsSticky(settled)) return settled;
    } else if (fastest == nullptr || *milliseconds < least) {
      fastest = &algorithm;
      least = *milliseconds;
    }
  }
  if (fastest == nullptr)
    return absl::UnimplementedError(
        absl::StrCat("every algorithm failed; the last: ", std::string(failure.message())));
  return *fastest;
}

absl::Status LtProducts::Flushed() {
  const CudaRuntime& runtime = device_.runtime();
  if (flush_.bytes() == 0) {
    const size_t bytes = std::max<size_t>(device_.properties().l2_bytes, 256);
    ASSIGN_OR_RETURN(flush_, GpuBuffer::Create(runtime, device_.index(), bytes));
  }
  return runtime.Fill(flush_.data(), 0, flush_.bytes(), stream_);
}

absl::StatusOr<double> LtProducts::Time(const std::function<absl::Status()>& run) {
  const CudaRuntime& runtime = device_.runtime();
  RETURN_IF_ERROR(run());  // loads the kernel
  std::array<double, 3> milliseconds{};
  for (double& each : milliseconds) {
    RETURN_IF_ERROR(Flushed());
    RETURN_IF_ERROR(runtime.Record(begin_, stream_));
    RETURN_IF_ERROR(run());
    RETURN_IF_ERROR(runtime.Record(end_, stream_));
    RETURN_IF_ERROR(runtime.Synchronize(stream_));
    ASSIGN_OR_RETURN(each, runtime.Milliseconds(begin_, end_));
  }
  std::sort(milliseconds.begin(), milliseconds.end());
  return milliseconds[1];
}

}  // namespace assay
