// Activation functions on the device.
#pragma once
#include "base/cuda/simt_math.h"
#include "engine/ops/cuda/norm.h"

namespace assay::ASSAY_SIMT {

ASSAY_DEVICE float Through(Gate gate, float x) {
  switch (gate) {
    case Gate::kNone:
      return x;
    case Gate::kSilu:
      return x / (1.0f + expf(-x));
    case Gate::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    case Gate::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456f * Fma(0.044715f * x * x, x, x)));
    case Gate::kRelu:
      return x > 0 ? x : 0.0f;
    case Gate::kTanh:
      return tanhf(x);
  }
  return 0;
}

}  // namespace assay::ASSAY_SIMT
