#include "engine/model/file_model.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/thread_pool.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

constexpr int64_t kSlabBytes = 1 << 20;

// Not packed at all: where the rows are.
struct FileWeight final : PackedWeight {
  std::shared_ptr<const Checkpoint> checkpoint;
  LinearSlot slot;
  std::vector<int64_t> part_rows;  // of slot.weights, stacked

  size_t bytes() const override { return 0; }
  // Rows [row, row + rows) of the stacked parts.
  void Read(int64_t row, int64_t rows, std::span<float> out) const {
    const auto width = static_cast<size_t>(slot.shape[1]);
    for (size_t part = 0; part < part_rows.size() && rows > 0; ++part) {
      const int64_t here = std::min(rows, part_rows[part] - row);
      if (here > 0) {
        const std::span<float> to = out.first(static_cast<size_t>(here) * width);
        if (!checkpoint->ReadRows(slot.weights[part], row, here, to).ok())
          std::fill(to.begin(), to.end(), std::numeric_limits<float>::quiet_NaN());
        out = out.subspan(to.size());
        rows -= here;
        row += here;
      }
      row -= part_rows[part];
    }
  }
};

// f32 products, slab by slab, by the list's own f32 kernel. It allocates, and is not for engines.
class FileKernel final : public LinearKernel {
 public:
  std::string_view name() const override { return "file_f32"; }
  absl::Status Supports(const LinearProblem&) const override {
    return absl::UnimplementedError("multiplies by weights that are not in memory");
  }
  absl::StatusOr<std::unique_ptr<const PackedWeight>> Pack(const QuantizedTensor&,
                                                           ActivationMode) const override {
    return absl::UnimplementedError("multiplies by weights that are not in memory");
  }
  size_t scratch_bytes(const LinearProblem& p, int64_t m) const override {
    const int64_t rows = SlabRows(p.shape);
    size_t inner = 0;  // of whichever kernel multiplies a slab
    for (const LinearKernel* kernel : AllLinearKernels()) {
      const LinearProblem slab = {{rows, p.shape[1]}, p.scheme, p.activation, p.device};
      if (kernel->Supports(slab).ok()) inner = std::max(inner, kernel->scratch_bytes(slab, m));
    }
    return static_cast<size_t>(m * rows) * sizeof(float) + inner + 128;
  }

  void Run(const PackedWeight& w, const LinearArgs& args, ComputeContext& context) const override {
    const auto& weight = static_cast<const FileWeight&>(w);
    const int64_t m = args.x.shape[0], n = weight.slot.shape[0];
    const Arena::Scope scope(context.scratch);
    const int64_t most = SlabRows(weight.slot.shape);
    auto* products = context.scratch.Allocate<float>(static_cast<size_t>(m * most));
    for (int64_t begin = 0; begin < n; begin += most) {
      const int64_t rows = std::min(most, n - begin);
      const MutableView y = {
          reinterpret_cast<std::byte*>(products), {m, rows}, DType::kF32, &CpuDevice()};
      if (!Multiply(weight, begin, rows, {args.x, {}, y, false}, context)) {
        std::fill_n(products, m * rows, std::numeric_limits<float>::quiet_NaN());
      }
      Store(args, n, begin, rows, products);
    }
    for (const std::string& name : weight.slot.weights) weight.checkpoint->DropResident(name);
  }

  void DecodeRow(const PackedWeight& w, int64_t row, std::span<float> out) const override {
    static_cast<const FileWeight&>(w).Read(row, 1, out);
  }

 private:
  static int64_t SlabRows(const Shape& shape) {
    const int64_t rows = kSlabBytes / (shape[1] * static_cast<int64_t>(sizeof(float))) / 16 * 16;
    return std::clamp<int64_t>(rows, 16, std::max<int64_t>(16, (shape[0] + 15) / 16 * 16));
  }

  static bool Multiply(const FileWeight& weight, int64_t begin, int64_t rows,
                       const LinearArgs& args, ComputeContext& context) {
    QuantizedTensor exact;
    exact.scheme = &F32Scheme();
    exact.shape = {rows, weight.slot.shape[1]};
    absl::StatusOr<Tensor> codes = Tensor::Create(CpuDevice(), exact.shape, DType::kF32);
    if (!codes.ok()) return false;
    exact.codes = *std::move(codes);
    weight.Read(begin, rows,
                {exact.codes.data<float>(), static_cast<size_t>(exact.shape.elements())});
    const absl::StatusOr<QuantizedLinear> linear = QuantizedLinear::Create(exact, Tensor(), {});
    if (!linear.ok()) return false;
    linear->Forward(args.x, args.y, context);
    return true;
  }

  // As the kernels' epilogues: + bias, + y.
  static void Store(const LinearArgs& args, int64_t n, int64_t begin, int64_t rows,
                    const float* products) {
    const float* bias = args.bias.empty() ? nullptr : args.bias.as<float>() + begin;
    for (int64_t r = 0; r < args.x.shape[0]; ++r) {
      float* y = args.y.as<float>() + r * n + begin;
      for (int64_t c = 0; c < rows; ++c) {
        float v = products[r * rows + c];
        if (bias != nullptr) v = v + bias[c];
        y[c] = args.accumulate ? y[c] + v : v;
      }
    }
  }
};

absl::StatusOr<QuantizedLinear> OnFile(std::shared_ptr<const Checkpoint> checkpoint,
                                       const LinearSlot& slot) {
  static const FileKernel kernel;
  auto weight = std::make_unique<FileWeight>();
  int64_t total = 0;
  for (const std::string& name : slot.weights) {
    ASSIGN_OR_RETURN(const CheckpointTensor* tensor, checkpoint->Find(name));
    if (tensor->shape.rank == 0 || tensor->shape.elements() % slot.shape[1] != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, " has another shape: shape=", ToString(tensor->shape)));
    }
    total += weight->part_rows.emplace_back(tensor->shape.elements() / slot.shape[1]);
  }
  if (total != slot.shape[0]) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the parts of ", slot.name, " have other rows: rows=", total, " expected=", slot.shape[0]));
  }
  ASSIGN_OR_RETURN(Tensor bias, ReadSlotBias(*checkpoint, slot));
  weight->checkpoint = std::move(checkpoint);
  weight->slot = slot;
  return QuantizedLinear::Of({slot.shape, &F32Scheme(), ActivationMode::kA16, DeviceKind::kCpu},
                             kernel, std::move(weight), std::move(bias));
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Model>> BuildOnFile(
    std::shared_ptr<const Checkpoint> checkpoint) {
  ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(*checkpoint));
  ASSIGN_OR_RETURN(const ModelSpec spec, family->parse(*checkpoint));
  LinearMap linears;
  for (const LinearSlot& slot : family->slots(spec)) {
    absl::StatusOr<QuantizedLinear> linear = OnFile(checkpoint, slot);
    if (!linear.ok()) return Annotate(linear.status(), slot.name);
    linears[slot.name] = std::make_shared<const QuantizedLinear>(*std::move(linear));
  }
  return family->build(spec, *checkpoint, std::move(linears));
}

}  // namespace assay
