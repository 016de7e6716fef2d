// Rows made longer with zeros, for products that load 16 bytes at a time: where a model's width is
// no multiple of that.
#pragma once
#include "base/cuda/simt.h"

namespace assay {

struct PadArgs {
  const void* from = nullptr;  // [rows, width], dense
  void* to = nullptr;          // [rows, padded], dense
  int rows = 0;
  int width = 0, padded = 0;  // bytes
};
ASSAY_LAUNCHER(int Pad(const PadArgs& args, const LaunchContext& context))

}  // namespace assay
