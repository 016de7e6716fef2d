#include "tests/support/random_tensor.h"

#include <cmath>
#include <cstring>
#include <numbers>

namespace assay {
namespace {

// SplitMix64: Steele, Lea, Flood 2014. Own generator because std:: distributions differ between
// libraries.
uint64_t Next(uint64_t& state) {
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
double Uniform(uint64_t& state) { return (static_cast<double>(Next(state) >> 11) + 0.5) * 0x1p-53; }

}  // namespace

std::vector<float> RandomNormal(int64_t count, uint64_t seed, float stddev) {
  std::vector<float> values(static_cast<size_t>(count));
  uint64_t state = seed * 0x2545f4914f6cdd1du + 1;
  for (float& value : values) {  // Box-Muller
    const double radius = std::sqrt(-2.0 * std::log(Uniform(state)));
    value = stddev * static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * Uniform(state)));
  }
  return values;
}

Tensor TensorOf(Shape shape, const std::vector<float>& values) {
  absl::StatusOr<Tensor> tensor = Tensor::Create(CpuDevice(), shape, DType::kF32);
  if (!values.empty())
    std::memcpy(tensor->data<float>(), values.data(), values.size() * sizeof(float));
  return *std::move(tensor);
}

Tensor RandomTensor(Shape shape, uint64_t seed, float stddev) {
  return TensorOf(shape, RandomNormal(shape.elements(), seed, stddev));
}

}  // namespace assay
