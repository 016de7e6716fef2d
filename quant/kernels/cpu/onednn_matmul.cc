#include "quant/kernels/cpu/onednn_matmul.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"
#include "base/mutex.h"
#include "base/tensor.h"

namespace assay {
namespace {

using dnnl::memory;

constexpr int kNumBuckets = 7;  // 1, 2, 4, ..., 64 rows
static_assert(int64_t{1} << (kNumBuckets - 1) == kOnednnMaxRows);

int BucketOf(int64_t rows) {
  int bucket = 0;
  while ((int64_t{1} << bucket) < rows) ++bucket;
  return bucket;
}

// Tells the OpenMP runtime behind the library, if there is one, that parallel regions opened by
// this thread have one thread. The runtime comes with the library, so it is looked up by name.
void UseOneThread() {
  thread_local const bool done = [] {
    using SetNumThreads = void (*)(int);
    const auto set = reinterpret_cast<SetNumThreads>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
    if (set != nullptr) set(1);
    return true;
  }();
  (void)done;
}

const dnnl::engine& Engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

absl::Status Failed(const char* what, const dnnl::error& error) {
  const std::string message = absl::StrCat("oneDNN failed: ", what, ": ", error.what());
  if (error.status == dnnl_unimplemented) return absl::UnimplementedError(message);
  return absl::InternalError(message);
}

memory Unbound(const memory::desc& desc) { return memory(desc, Engine(), DNNL_MEMORY_NONE); }

// What one thread needs to execute: memory objects are handles, so they cannot be shared.
struct Slot {
  std::atomic_flag busy = ATOMIC_FLAG_INIT;
  std::optional<dnnl::stream> stream;
  std::array<memory, kNumBuckets> x, out, scratchpad;
  memory weights;
};

class Matmul final : public OnednnMatmul {
 public:
  explicit Matmul(const Options& options)
      : options_(options), slots_(static_cast<size_t>(std::max(4, HostCpu().cores)) + 2) {}

  absl::Status Init() {
    UseOneThread();
    try {
      RETURN_IF_ERROR(MakePrimitives());
      for (Slot& slot : slots_) Bind(slot);
    } catch (const dnnl::error& error) {
      return Failed("cannot prepare matmul", error);
    }
    return SelfCheck();
  }

  size_t weight_bytes() const override { return weights_desc_.get_size(); }
  size_t scratchpad_bytes() const override { return scratchpad_bytes_; }

  absl::Status PackWeights(const int8_t* codes, std::byte* out) const override {
    UseOneThread();
    try {
      const memory::desc plain({options_.k, options_.width}, memory::data_type::s8,
                               memory::format_tag::ba);
      memory from(plain, Engine(), const_cast<int8_t*>(codes));  // read only
      memory to(weights_desc_, Engine(), out);
      dnnl::stream stream(Engine());
      dnnl::reorder(from, to).execute(stream, from, to);
      stream.wait();
    } catch (const dnnl::error& error) {
      return Failed("cannot reorder weights", error);
    }
    return absl::OkStatus();
  }

  // Source: oneDNN developer guide, "Understanding memory formats": blocked layout.
  int64_t WeightOffset(int64_t column, int64_t i) const override {
    std::array<int64_t, 2> position = {i, column};
    int64_t offset = 0, stride = 1;
    for (size_t b = inner_blocks_.size(); b-- > 0;) {
      int64_t& p = position[static_cast<size_t>(inner_dims_[b])];
      offset += p % inner_blocks_[b] * stride;
      p /= inner_blocks_[b];
      stride *= inner_blocks_[b];
    }
    return offset + position[0] * strides_[0] + position[1] * strides_[1];
  }

  absl::Status Multiply(int64_t rows, const Operands& operands) const override {
    UseOneThread();
    const auto bucket = static_cast<size_t>(BucketOf(rows));
    Slot& slot = Acquire();
    const absl::Status status = Execute(slot, bucket, operands);
    slot.busy.clear(std::memory_order_release);
    return status;
  }

 private:
  absl::Status MakePrimitives() {
    dnnl::primitive_attr attributes;
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    const auto plain = memory::format_tag::ab;
    // The widest bucket chooses the layout of the weights, the others have to take it.
    for (int bucket = kNumBuckets - 1; bucket >= 0; --bucket) {
      const int64_t rows = int64_t{1} << bucket;
      const memory::desc x({rows, options_.k}, memory::data_type::u8, plain);
      const memory::desc out({rows, options_.width}, memory::data_type::s32, plain);
      const memory::desc any({options_.k, options_.width}, memory::data_type::s8,
                             memory::format_tag::any);
      const bool first = bucket == kNumBuckets - 1;
      const dnnl::matmul::primitive_desc desc(Engine(), x, first ? any : weights_desc_, out,
                                              attributes);
      const std::string implementation = desc.impl_info_str();
      if (implementation.find("ref") != std::string::npos) {
        return absl::UnimplementedError(
            absl::StrCat("oneDNN has only a reference implementation: ", implementation,
                         " rows=", rows, " k=", options_.k, " n=", options_.width));
      }
      if (first) weights_desc_ = desc.weights_desc();
      const auto b = static_cast<size_t>(bucket);
      primitives_[b] = dnnl::matmul(desc);
      x_desc_[b] = x;
      out_desc_[b] = out;
      scratchpad_desc_[b] = desc.scratchpad_desc();
      scratchpad_bytes_ = std::max(scratchpad_bytes_, scratchpad_desc_[b].get_size());
    }
    if (weights_desc_.get_format_kind() != memory::format_kind::blocked) {
      return absl::UnimplementedError("oneDNN's layout of the weights is not a blocked one");
    }
    inner_blocks_ = weights_desc_.get_inner_blks();
    inner_dims_ = weights_desc_.get_inner_idxs();
    strides_ = weights_desc_.get_strides();
    return absl::OkStatus();
  }

  void Bind(Slot& slot) {
    slot.stream.emplace(Engine());
    slot.weights = Unbound(weights_desc_);
    for (size_t b = 0; b < kNumBuckets; ++b) {
      slot.x[b] = Unbound(x_desc_[b]);
      slot.out[b] = Unbound(out_desc_[b]);
      slot.scratchpad[b] = Unbound(scratchpad_desc_[b]);
    }
  }

  // There are more slots than cores; a slot is held while one matmul runs.
  Slot& Acquire() const {
    for (size_t i = 0;; i = (i + 1) % slots_.size()) {
      if (!slots_[i].busy.test_and_set(std::memory_order_acquire)) return slots_[i];
    }
  }

  absl::Status Execute(Slot& slot, size_t bucket, const Operands& operands) const {
    try {
      slot.x[bucket].set_data_handle(const_cast<uint8_t*>(operands.x));  // read only
      slot.weights.set_data_handle(const_cast<std::byte*>(operands.weights));
      slot.out[bucket].set_data_handle(operands.out);
      slot.scratchpad[bucket].set_data_handle(operands.scratchpad);
    } catch (const dnnl::error& error) {
      return Failed("cannot bind operands", error);
    }
    // The C call: the C++ one copies its map of arguments to the heap.
    const std::array<dnnl_exec_arg_t, 4> args = {{
        {DNNL_ARG_SRC, slot.x[bucket].get()},
        {DNNL_ARG_WEIGHTS, slot.weights.get()},
        {DNNL_ARG_DST, slot.out[bucket].get()},
        {DNNL_ARG_SCRATCHPAD, slot.scratchpad[bucket].get()},
    }};
    const dnnl_status_t status = dnnl_primitive_execute(
        primitives_[bucket].get(), slot.stream->get(), static_cast<int>(args.size()), args.data());
    if (status == dnnl_success) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("oneDNN failed: matmul execution: status=", status));
  }

  // Every bucket against exact integers, with the largest codes that there are among the operands.
  // The library accepts some problems and returns wrong numbers, silently.
  absl::Status SelfCheck() const {
    const int64_t k = options_.k, width = options_.width;
    const int top = options_.max_weight_code;
    ASSIGN_OR_RETURN(Tensor weights, Tensor::Create(CpuDevice(), {width, k}, DType::kI8));
    ASSIGN_OR_RETURN(
        Tensor packed,
        Tensor::Create(CpuDevice(), {static_cast<int64_t>(weight_bytes())}, DType::kI8));
    ASSIGN_OR_RETURN(Tensor x, Tensor::Create(CpuDevice(), {kOnednnMaxRows, k}, DType::kU8));
    ASSIGN_OR_RETURN(Tensor out, Tensor::Create(CpuDevice(), {kOnednnMaxRows, width}, DType::kI32));
    ASSIGN_OR_RETURN(
        Tensor scratchpad,
        Tensor::Create(CpuDevice(), {static_cast<int64_t>(scratchpad_bytes_) + 64}, DType::kI8));
    uint32_t random = 1;
    const auto next = [&random](uint32_t below) {
      random = random * 1664525u + 1013904223u;
      return static_cast<int>((random >> 8) % below);
    };
    for (int64_t i = 0; i < width * k; ++i) {
      const int code = next(4) == 0 ? (next(2) == 0 ? top : -top)
                                    : next(2 * static_cast<uint32_t>(top) + 1) - top;
      weights.data<int8_t>()[i] = static_cast<int8_t>(i < k ? top : code);
    }
    for (int64_t i = 0; i < kOnednnMaxRows * k; ++i) {
      x.data<uint8_t>()[i] = static_cast<uint8_t>(i < k || next(4) == 0 ? 255 : next(256));
    }
    RETURN_IF_ERROR(PackWeights(weights.data<int8_t>(), packed.data<std::byte>()));
    for (int64_t rows = 1; rows <= kOnednnMaxRows; rows *= 2) {
      RETURN_IF_ERROR(Multiply(rows, {x.data<uint8_t>(), packed.data<std::byte>(),
                                      out.data<int32_t>(), scratchpad.data<std::byte>()}));
      for (const int64_t row : {int64_t{0}, rows / 2, rows - 1}) {
        RETURN_IF_ERROR(CheckRow(row, x, weights, out));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckRow(int64_t row, const Tensor& x, const Tensor& weights,
                        const Tensor& out) const {
    const int64_t k = options_.k;
    for (int64_t c = 0; c < options_.width; ++c) {
      int32_t exact = 0;
      for (int64_t i = 0; i < k; ++i)
        exact += static_cast<int32_t>(x.data<uint8_t>()[row * k + i]) *
                 weights.data<int8_t>()[c * k + i];
      const int32_t got = out.data<int32_t>()[row * options_.width + c];
      if (got != exact) {
        return absl::UnimplementedError(
            absl::StrCat("oneDNN's matmul is not exact here: k=", k, " n=", options_.width,
                         " row=", row, " column=", c, " got=", got, " expected=", exact));
      }
    }
    return absl::OkStatus();
  }

  const Options options_;
  memory::desc weights_desc_;
  std::array<memory::desc, kNumBuckets> x_desc_, out_desc_, scratchpad_desc_;
  std::array<dnnl::matmul, kNumBuckets> primitives_;
  memory::dims inner_blocks_, inner_dims_, strides_;
  size_t scratchpad_bytes_ = 0;
  mutable std::vector<Slot> slots_;  // each guarded by its own `busy`
};

struct Cache {
  Mutex mu;
  std::map<std::tuple<int64_t, int64_t, int>, std::weak_ptr<const OnednnMatmul>> entries
      ABSL_GUARDED_BY(mu);
};

}  // namespace

int64_t OnednnMatmul::PaddedRows(int64_t rows) { return int64_t{1} << BucketOf(rows); }

absl::StatusOr<std::shared_ptr<const OnednnMatmul>> OnednnMatmul::Get(const Options& options) {
  static Cache cache;
  const auto key = std::make_tuple(options.k, options.width, options.max_weight_code);
  {
    MutexLock lock(cache.mu);
    if (auto found = cache.entries[key].lock()) return found;
  }
  // Made outside the lock: two threads may make the same one, the last is kept.
  auto made = std::make_shared<Matmul>(options);
  RETURN_IF_ERROR(made->Init());
  MutexLock lock(cache.mu);
  cache.entries[key] = made;
  return made;
}

}  // namespace assay
