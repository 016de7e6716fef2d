#include "quant/kernels/cuda/cublas_lt.h"

#include <dlfcn.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace assay {
namespace {

// The library's C interface, as far as it is used; its header is not needed to build.
using Handle = void*;
using Object = void*;  // descriptors, layouts, preferences: opaque pointers
struct Heuristic {     // cublasLtMatmulHeuristicResult_t
  std::array<uint64_t, 8> algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  std::array<int, 4> reserved;
};
static_assert(sizeof(Heuristic) == 96);

enum : int { kOpN = 0, kOpT = 1, kCompute32F = 68, kCompute32I = 72 };
enum DescAttribute : int {
  kTransA = 3,
  kTransB = 4,
  kAScalePointer = 17,
  kBScalePointer = 18,
  kFastAccum = 25,
  kAScaleMode = 31,
  kBScaleMode = 32
};
enum Preference : int { kMaxWorkspaceBytes = 1, kReductionSchemes = 3 };

struct Functions {
  int (*create)(Handle*);
  int (*destroy)(Handle);
  size_t (*version)();
  int (*desc_create)(Object*, int compute, int scale_type);
  int (*desc_destroy)(Object);
  int (*desc_set)(Object, int attribute, const void*, size_t);
  int (*layout_create)(Object*, int type, uint64_t rows, uint64_t columns, int64_t ld);
  int (*layout_destroy)(Object);
  int (*preference_create)(Object*);
  int (*preference_destroy)(Object);
  int (*preference_set)(Object, int attribute, const void*, size_t);
  int (*heuristic)(Handle, Object desc, Object a, Object b, Object c, Object d, Object preference,
                   int wanted, Heuristic*, int* got);
  int (*check)(Handle, Object desc, Object a, Object b, Object c, Object d, const void* algorithm,
               Heuristic*);
  int (*matmul)(Handle, Object desc, const void* alpha, const void* a, Object a_layout,
                const void* b, Object b_layout, const void* beta, const void* c, Object c_layout,
                void* d, Object d_layout, const void* algorithm, void* workspace, size_t bytes,
                void* stream);
};

absl::Status LtStatus(int error, std::string_view op) {
  if (error == 0) return absl::OkStatus();
  const std::string words = absl::StrCat("cuBLASLt: status=", error, " in ", std::string(op));
  if (error == 7 || error == 15)  // INVALID_VALUE, NOT_SUPPORTED: said before anything is launched
    return absl::UnimplementedError(words);
  if (error == 1) return absl::UnavailableError(words);  // NOT_INITIALIZED: no device
  return absl::InternalError(words);
}

std::string Words(const LtProblem& p) {
  return absl::StrCat("m=", p.m, " n=", p.n, " k=", p.k, " operands=", static_cast<int>(p.operands),
                      " out=", static_cast<int>(p.out), " scales=", static_cast<int>(p.scales));
}

// Deleted by the function that the library has for it.
class Owned {
 public:
  Owned() = default;
  Owned(Object object, int (*destroy)(Object)) : object_(object), destroy_(destroy) {}
  Owned(Owned&& other) noexcept { *this = std::move(other); }
  Owned& operator=(Owned&& other) noexcept {
    std::swap(object_, other.object_);
    std::swap(destroy_, other.destroy_);
    return *this;
  }
  ~Owned() {
    if (object_ != nullptr) destroy_(object_);
  }
  Object get() const { return object_; }

 private:
  Object object_ = nullptr;
  int (*destroy_)(Object) = nullptr;
};

// What the library is told of a problem.
class Described {
 public:
  Described(const Functions& lt, const LtProblem& problem) : lt_(lt), problem_(problem) {}

  absl::Status Prepare() {
    const LtProblem& p = problem_;
    const bool integers = p.operands == LtType::kS8;
    Object made = nullptr;
    const int number = static_cast<int>(integers ? LtType::kS32 : LtType::kF32);
    RETURN_IF_ERROR(
        LtStatus(lt_.desc_create(&made, integers ? kCompute32I : kCompute32F, number), "desc"));
    desc_ = Owned(made, lt_.desc_destroy);
    RETURN_IF_ERROR(Set<int32_t>(kTransA, kOpT));
    RETURN_IF_ERROR(Set<int32_t>(kTransB, kOpN));
    if (p.operands == LtType::kE4M3) RETURN_IF_ERROR(Set<int8_t>(kFastAccum, p.fast_sums ? 1 : 0));
    if (p.scales != LtScales::kNone && p.scales != LtScales::kScalar) {
      RETURN_IF_ERROR(Set<int32_t>(kAScaleMode, static_cast<int32_t>(p.scales)));
      RETURN_IF_ERROR(Set<int32_t>(kBScaleMode, static_cast<int32_t>(p.scales)));
    }
    // Heuristics look at whether there are scales and how they are aligned, not at the scales.
    static constexpr std::array<float, 64> kStandIn alignas(256) = {};
    if (p.scales != LtScales::kNone)
      RETURN_IF_ERROR(SetScales({.w_scales = kStandIn.data(), .x_scales = kStandIn.data()}));
    RETURN_IF_ERROR(MakeLayout(p.operands, p.k, p.n, w_));
    RETURN_IF_ERROR(MakeLayout(p.operands, p.k, p.m, x_));
    return MakeLayout(p.out, p.n, p.m, y_);
  }
  absl::Status SetScales(const LtCall& call) {
    RETURN_IF_ERROR(Set<const float*>(kAScalePointer, call.w_scales));
    return Set<const float*>(kBScalePointer, call.x_scales);
  }
  Object desc() const { return desc_.get(); }
  Object w() const { return w_.get(); }
  Object x() const { return x_.get(); }
  Object y() const { return y_.get(); }

 private:
  template <typename T>
  absl::Status Set(int attribute, T value) {
    return LtStatus(lt_.desc_set(desc_.get(), attribute, &value, sizeof(value)),
                    absl::StrCat("set attribute=", attribute));
  }
  absl::Status MakeLayout(LtType type, int64_t rows, int64_t columns, Owned& out) const {
    Object made = nullptr;
    RETURN_IF_ERROR(
        LtStatus(lt_.layout_create(&made, static_cast<int>(type), static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns), rows),
                 "layout"));
    out = Owned(made, lt_.layout_destroy);
    return absl::OkStatus();
  }

  const Functions& lt_;
  const LtProblem& problem_;
  Owned desc_, w_, x_, y_;
};

class Opened final : public CublasLt {
 public:
  explicit Opened(void* library) : library_(library) {}
  ~Opened() override {
    if (handle_ != nullptr) lt_.destroy(handle_);
    dlclose(library_);
  }

  absl::Status Bind(const std::string& path) {
    const auto find = [&](const char* name, auto& function) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(
          dlsym(library_, name));  // NOLINT
      if (function == nullptr && missing_ == nullptr) missing_ = name;
    };
    find("cublasLtCreate", lt_.create);
    find("cublasLtDestroy", lt_.destroy);
    find("cublasLtGetVersion", lt_.version);
    find("cublasLtMatmulDescCreate", lt_.desc_create);
    find("cublasLtMatmulDescDestroy", lt_.desc_destroy);
    find("cublasLtMatmulDescSetAttribute", lt_.desc_set);
    find("cublasLtMatrixLayoutCreate", lt_.layout_create);
    find("cublasLtMatrixLayoutDestroy", lt_.layout_destroy);
    find("cublasLtMatmulPreferenceCreate", lt_.preference_create);
    find("cublasLtMatmulPreferenceDestroy", lt_.preference_destroy);
    find("cublasLtMatmulPreferenceSetAttribute", lt_.preference_set);
    find("cublasLtMatmulAlgoGetHeuristic", lt_.heuristic);
    find("cublasLtMatmulAlgoCheck", lt_.check);
    find("cublasLtMatmul", lt_.matmul);
    if (missing_ != nullptr)
      return absl::UnimplementedError(
          absl::StrCat("cuBLASLt lacks a function: library=", path, " function=", missing_));
    return LtStatus(lt_.create(&handle_), absl::StrCat("create library=", path));
  }

  size_t version() const override { return lt_.version(); }
  absl::StatusOr<std::vector<LtAlgorithm>> Algorithms(const LtProblem& problem) const override;
  absl::StatusOr<size_t> Check(const LtProblem& problem,
                               const LtAlgorithm& algorithm) const override;
  absl::Status Run(const LtProblem& problem, const LtCall& call,
                   const LtAlgorithm& algorithm) const override;

 private:
  void* const library_;
  Functions lt_ = {};
  Handle handle_ = nullptr;
  const char* missing_ = nullptr;
};

absl::StatusOr<std::vector<LtAlgorithm>> Opened::Algorithms(const LtProblem& problem) const {
  Described op(lt_, problem);
  RETURN_IF_ERROR(op.Prepare());
  Object made = nullptr;
  RETURN_IF_ERROR(LtStatus(lt_.preference_create(&made), "preference"));
  const Owned preference(made, lt_.preference_destroy);
  const size_t most = kWorkspaceBytes;
  const uint32_t no_reduction = 0;
  RETURN_IF_ERROR(
      LtStatus(lt_.preference_set(made, kMaxWorkspaceBytes, &most, sizeof(most)), "preference"));
  RETURN_IF_ERROR(
      LtStatus(lt_.preference_set(made, kReductionSchemes, &no_reduction, sizeof(no_reduction)),
               "preference"));
  std::array<Heuristic, kMostAlgorithms> found{};
  int got = 0;
  const int error = lt_.heuristic(handle_, op.desc(), op.w(), op.x(), op.y(), op.y(), made,
                                  static_cast<int>(found.size()), found.data(), &got);
  std::vector<LtAlgorithm> algorithms;
  for (int i = 0; error == 0 && i < got; ++i) {
    const Heuristic& h = found[static_cast<size_t>(i)];
    if (h.state == 0 && h.workspace_bytes <= most)
      algorithms.push_back({h.algorithm, h.workspace_bytes});
  }
  if (algorithms.empty())
    return absl::UnimplementedError(absl::StrCat("cuBLASLt has no algorithm: ", Words(problem),
                                                 " version=", lt_.version(), " status=", error));
  return algorithms;
}

absl::StatusOr<size_t> Opened::Check(const LtProblem& problem, const LtAlgorithm& algorithm) const {
  Described op(lt_, problem);
  RETURN_IF_ERROR(op.Prepare());
  Heuristic result{};
  const int error = lt_.check(handle_, op.desc(), op.w(), op.x(), op.y(), op.y(),
                              algorithm.words.data(), &result);
  if (error != 0 || result.state != 0)
    return absl::UnimplementedError(
        absl::StrCat("cuBLASLt refuses the algorithm: ", Words(problem), " status=", error));
  return result.workspace_bytes;
}

absl::Status Opened::Run(const LtProblem& problem, const LtCall& call,
                         const LtAlgorithm& algorithm) const {
  Described op(lt_, problem);
  RETURN_IF_ERROR(op.Prepare());
  if (problem.scales != LtScales::kNone) RETURN_IF_ERROR(op.SetScales(call));
  const float one = 1, beta = call.accumulate ? 1.0f : 0.0f;
  const int32_t int_one = 1, int_beta = call.accumulate ? 1 : 0;
  const bool integers = problem.operands == LtType::kS8;
  const void* const alpha = integers ? static_cast<const void*>(&int_one) : &one;
  const void* const scaled = integers ? static_cast<const void*>(&int_beta) : &beta;
  const int error = lt_.matmul(handle_, op.desc(), alpha, call.w, op.w(), call.x, op.x(), scaled,
                               call.y, op.y(), call.y, op.y(), algorithm.words.data(),
                               call.workspace, algorithm.workspace_bytes, call.stream);
  return error == 0 ? absl::OkStatus() : LtStatus(error, "matmul " + Words(problem));
}

std::vector<std::string> PlacesFor(const std::string& path) {
  if (!path.empty()) return {path};
  std::vector<std::string> places;
  if (const char* named = std::getenv("ASSAY_CUBLASLT"); named != nullptr)
    places.emplace_back(named);
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    places.emplace_back(name);
    places.push_back(absl::StrCat("/usr/local/cuda/lib64/", name));
  }
  return places;
}

}  // namespace

absl::StatusOr<std::unique_ptr<const CublasLt>> CublasLt::Load(const std::string& path) {
  const std::vector<std::string> places = PlacesFor(path);
  for (const std::string& place : places) {
    void* const library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) continue;
    auto opened = std::make_unique<Opened>(library);
    RETURN_IF_ERROR(opened->Bind(place));
    return std::unique_ptr<const CublasLt>(std::move(opened));
  }
  return absl::NotFoundError(
      absl::StrCat("cuBLASLt was not found; tried ", absl::StrJoin(places, ", ")));
}

const char* LtRefuses(const LtProblem& problem, int compute) {
  const int64_t operand_bytes =
      problem.operands == LtType::kE4M3 || problem.operands == LtType::kS8 ? 1 : 2;
  const int64_t out_bytes = problem.out == LtType::kF32 || problem.out == LtType::kS32 ? 4 : 2;
  if (problem.k * operand_bytes % 16 != 0) return "rows of k are no multiple of 16 bytes";
  if (problem.n * out_bytes % 16 != 0) return "rows of n are no multiple of 16 bytes";
  if (problem.operands == LtType::kE4M3) {
    if (compute < 89) return "FP8 products need compute capability 8.9";
    if (problem.scales == LtScales::kRows && compute != 90)
      return "scales per row need compute capability 9.0";
    if (problem.scales == LtScales::kRows128 && compute != 90)
      return "scales per row and 128 inputs need compute capability 9.0";
    if (problem.scales == LtScales::kRows128 && (problem.m % 4 != 0 || problem.n % 4 != 0))
      return "rows of scales are no multiple of 16 bytes";
    return nullptr;
  }
  if (problem.scales != LtScales::kNone) return "scales are for FP8 operands";
  if (problem.operands == LtType::kBf16 && compute < 80) return "bf16 needs compute capability 8.0";
  return nullptr;
}

}  // namespace assay
