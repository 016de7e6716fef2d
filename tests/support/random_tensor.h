// Reproducible random data.
#pragma once
#include <cstdint>
#include <vector>

#include "base/tensor.h"

namespace assay {

// i.i.d. N(0, stddev^2) values; the same seed gives the same values on every platform.
std::vector<float> RandomNormal(int64_t count, uint64_t seed, float stddev = 1.0f);
// The same as a host tensor [shape] f32.
Tensor RandomTensor(Shape shape, uint64_t seed, float stddev = 1.0f);
// A host tensor [shape] f32 that holds `values`.
Tensor TensorOf(Shape shape, const std::vector<float>& values);

}  // namespace assay
