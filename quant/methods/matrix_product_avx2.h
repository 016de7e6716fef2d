// The inner block of AddProduct for hosts with AVX2 and FMA (base/cpu_info.h). Thread-safe.
#pragma once
#include <cstdint>

namespace assay {

constexpr int kProductRows = 6;  // rows of a block of C
constexpr int kProductColumnsF32 = 16;
constexpr int kProductColumnsF64 = 8;

// out [6, 16] = a [p, 6]^T b [p, 16], all dense.
void ProductBlockAvx2(const float* a, const float* b, int64_t p, float* out);
// out [6, 8] = a [p, 6]^T b [p, 8].
void ProductBlockAvx2(const double* a, const double* b, int64_t p, double* out);

}  // namespace assay
