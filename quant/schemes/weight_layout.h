// Which tensors a scheme stores for a weight [n, k]: one description from which tensors are
// allocated, checked and counted. Thread-safe; no allocation.
#pragma once
#include <array>
#include <string_view>

#include "quant/scheme.h"

namespace assay {

struct TensorSpec {
  DType dtype = DType::kF32;
  Shape shape;  // rank 0: there is no such tensor

  bool present() const { return shape.rank != 0; }
  size_t bytes() const { return present() ? BytesOf(shape.elements(), dtype) : 0; }
};

struct WeightLayout {
  TensorSpec codes, scales, zeros;
  struct Extra {
    std::string_view name;
    TensorSpec spec;
  };
  std::array<Extra, 2> extra;  // those without a name are absent

  size_t bytes() const;
};

// All tensors but the codes, filled with zero bytes. ResourceExhausted.
absl::Status AllocateGrid(const WeightLayout& layout, QuantizedTensor& grid);
// The codes. ResourceExhausted.
absl::Status AllocateCodes(const WeightLayout& layout, QuantizedTensor& q);

// InvalidArgument unless q has these codes, scales, zeros and extra tensors (others beside them are
// not the scheme's); with `codes` false, its codes do not matter.
absl::Status CheckLayout(const QuantizedTensor& q, const WeightLayout& layout, bool codes);

}  // namespace assay
