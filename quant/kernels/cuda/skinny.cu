#include "quant/kernels/cuda/skinny.h"
#include "quant/kernels/cuda/skinny_kernel.h"

namespace assay::ASSAY_SIMT {

int Skinny(const SkinnyArgs& args, const LaunchContext& context) {
  switch (args.w.storage) {
    case Storage::kInt4Group:
      return SkinnyInt4(args, context);
    case Storage::kInt8Channel:
      return SkinnyInt8Channel(args, context);
    case Storage::kInt8Group:
      return SkinnyInt8Group(args, context);
    case Storage::kE4M3:
      return SkinnyE4M3(args, context);
    case Storage::kNf4:
      return SkinnyNf4(args, context);
    case Storage::kF32:
    case Storage::kBf16:
    case Storage::kF16:
    case Storage::kInt4Float:
      break;  // refused
  }
  return kInvalidLaunch;
}

}  // namespace assay::ASSAY_SIMT
