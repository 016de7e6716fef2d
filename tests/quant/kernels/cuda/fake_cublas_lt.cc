// A library with cuBLASLt's C interface that multiplies on the CPU, column-major as the original's
// documentation says, and is strict about what it is given. What test of ours runs on it shows that
// our calls mean what we think; not that the original agrees.
#include "tests/quant/kernels/cuda/fake_cublas_lt.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/float16.h"
#include "base/float8.h"

namespace {

enum Status : int { kSuccess = 0, kInvalid = 7, kExecutionFailed = 13, kNotSupported = 15 };

struct Desc {
  int compute, scale_type, trans_a = 0, trans_b = 0, a_mode = 0, b_mode = 0;
  int8_t fast = 0;
  const float *a_scales = nullptr, *b_scales = nullptr;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t ld;
};
struct Heuristic {
  std::array<uint64_t, 8> algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  std::array<int, 4> reserved;
};
struct Preference {
  size_t workspace = 0;
  uint32_t reductions = ~0u;
};

double At(const void* data, const Layout& layout, uint64_t row, uint64_t column) {
  const size_t i = column * static_cast<size_t>(layout.ld) + row;
  switch (layout.type) {
    case 0:
      return static_cast<const float*>(data)[i];
    case 2:
      return assay::F16ToF32(static_cast<const uint16_t*>(data)[i]);
    case 3:
      return static_cast<const int8_t*>(data)[i];
    case 10:
      return static_cast<const int32_t*>(data)[i];
    case 14:
      return assay::Bf16ToF32(static_cast<const uint16_t*>(data)[i]);
    default:
      return assay::E4M3ToF32(static_cast<const uint8_t*>(data)[i]);
  }
}

double ScaleOf(const float* scales, int mode, uint64_t column, uint64_t columns, uint64_t k) {
  if (scales == nullptr) return 1;
  if (mode == 0) return scales[0];
  return mode == 3 ? scales[column] : scales[k / 128 * columns + column];
}

bool IsMade(const Desc& op, const Layout& w, const Layout& x, const Layout& y) {
  const bool same = op.trans_a == 1 && op.trans_b == 0 && w.rows == x.rows && y.rows == w.columns &&
                    y.columns == x.columns;
  // Scales in vectors come in pairs, and their mode asks for them.
  const bool scaled = op.a_mode == 0 || (op.a_scales != nullptr && op.b_scales != nullptr);
  // Rows of operands, results and scales in multiples of 16 bytes.
  const bool aligned = x.rows * (x.type == 3 || x.type == 28 ? 1 : 2) % 16 == 0 &&
                       y.rows * (y.type == 0 || y.type == 10 ? 4 : 2) % 16 == 0;
  const bool fours = op.a_mode != 4 || (x.columns % 4 == 0 && w.columns % 4 == 0);
  return same && scaled && aligned && fours && op.a_mode == op.b_mode;
}

struct Product {
  Desc op;
  Layout w, x, y;
  const void *a, *b;
  void* d;
  double factor, keep;

  void operator()() const {
    for (uint64_t i = 0; i < y.rows; ++i) {
      for (uint64_t j = 0; j < y.columns; ++j) Put(i, j, Sum(i, j));
    }
  }
  double Sum(uint64_t i, uint64_t j) const {
    double sum = 0;
    for (uint64_t k = 0; k < w.rows; ++k) {
      sum += At(a, w, k, i) * ScaleOf(op.a_scales, op.a_mode, i, w.columns, k) * At(b, x, k, j) *
             ScaleOf(op.b_scales, op.b_mode, j, x.columns, k);
    }
    return sum;
  }
  void Put(uint64_t i, uint64_t j, double sum) const {
    const size_t at = j * static_cast<size_t>(y.ld) + i;
    const double out = factor * sum + (keep != 0 ? keep * At(d, y, i, j) : 0);
    if (y.type == 0) static_cast<float*>(d)[at] = static_cast<float>(out);
    if (y.type == 2) static_cast<uint16_t*>(d)[at] = assay::F32ToF16(static_cast<float>(out));
    if (y.type == 10) static_cast<int32_t*>(d)[at] = static_cast<int32_t>(out);
    if (y.type == 14) static_cast<uint16_t*>(d)[at] = assay::F32ToBf16(static_cast<float>(out));
  }
};

}  // namespace

extern "C" {

assay::FakeCublasLt fake_cublas_lt_controls;

int cublasLtCreate(void** handle) {
  *handle = new int(1);
  return kSuccess;
}
int cublasLtDestroy(void* handle) {
  delete static_cast<int*>(handle);
  return kSuccess;
}
size_t cublasLtGetVersion() { return 130001; }
int cublasLtMatmulDescCreate(void** desc, int compute, int scale_type) {
  *desc = new Desc{compute, scale_type};
  return kSuccess;
}
int cublasLtMatmulDescDestroy(void* desc) {
  delete static_cast<Desc*>(desc);
  return kSuccess;
}
int cublasLtMatmulDescSetAttribute(void* to, int attribute, const void* value, size_t bytes) {
  Desc& desc = *static_cast<Desc*>(to);
  const auto take = [&](auto& field) {
    if (bytes != sizeof(field)) return static_cast<int>(kInvalid);
    std::memcpy(&field, value, bytes);
    return static_cast<int>(kSuccess);
  };
  switch (attribute) {
    case 3:
      return take(desc.trans_a);
    case 4:
      return take(desc.trans_b);
    case 17:
      return take(desc.a_scales);
    case 18:
      return take(desc.b_scales);
    case 25:
      return take(desc.fast);
    case 31:
      return take(desc.a_mode);
    case 32:
      return take(desc.b_mode);
    default:
      return kInvalid;
  }
}
int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns,
                               int64_t ld) {
  *layout = new Layout{type, rows, columns, ld};
  return kSuccess;
}
int cublasLtMatrixLayoutDestroy(void* layout) {
  delete static_cast<Layout*>(layout);
  return kSuccess;
}
int cublasLtMatmulPreferenceCreate(void** preference) {
  *preference = new Preference;
  return kSuccess;
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
  delete static_cast<Preference*>(preference);
  return kSuccess;
}
int cublasLtMatmulPreferenceSetAttribute(void* to, int attribute, const void* value, size_t bytes) {
  Preference& preference = *static_cast<Preference*>(to);
  if (attribute == 1 && bytes == sizeof(size_t)) {
    std::memcpy(&preference.workspace, value, bytes);
  } else if (attribute == 3 && bytes == sizeof(uint32_t)) {
    std::memcpy(&preference.reductions, value, bytes);
  } else {
    return kInvalid;
  }
  return kSuccess;
}
int cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* a, void* b, void*, void* d,
                                   void* preference, int wanted, Heuristic* found, int* got) {
  const Layout &w = *static_cast<Layout*>(a), &x = *static_cast<Layout*>(b),
               &y = *static_cast<Layout*>(d);
  *got = 0;
  ++fake_cublas_lt_controls.heuristics;
  if (!IsMade(*static_cast<Desc*>(desc), w, x, y) || wanted < 2) return kInvalid;
  if (static_cast<Preference*>(preference)->reductions != 0) return kInvalid;
  if (w.rows == 48) return kNotSupported;  // so that a test sees this
  for (; *got < fake_cublas_lt_controls.algorithms && *got < wanted; ++*got) {
    found[*got] = {};
    found[*got].algorithm[0] = assay::FakeCublasLt::kMark + static_cast<uint64_t>(*got);
    found[*got].workspace_bytes = *got == 1 ? size_t{64} << 20 : 1024;  // the second: too much
  }
  return kSuccess;
}
int cublasLtMatmulAlgoCheck(void*, void* desc, void* a, void* b, void*, void* d,
                            const void* algorithm, Heuristic* result) {
  const Layout &w = *static_cast<Layout*>(a), &x = *static_cast<Layout*>(b),
               &y = *static_cast<Layout*>(d);
  ++fake_cublas_lt_controls.checks;
  uint64_t mark;
  std::memcpy(&mark, algorithm, sizeof(mark));
  if (!IsMade(*static_cast<Desc*>(desc), w, x, y)) return kInvalid;
  if (mark != assay::FakeCublasLt::kMark && mark != assay::FakeCublasLt::kMark + 2) return kInvalid;
  if (static_cast<int64_t>(x.columns) == fake_cublas_lt_controls.refused_m) return kNotSupported;
  *result = {};
  result->workspace_bytes = 1024;
  return kSuccess;
}
int cublasLtMatmul(void*, void* desc, const void* alpha, const void* a, void* a_layout,
                   const void* b, void* b_layout, const void* beta, const void* c, void*, void* d,
                   void* d_layout, const void* algorithm, void* workspace, size_t bytes, void*) {
  const Desc& op = *static_cast<Desc*>(desc);
  const Layout &w = *static_cast<Layout*>(a_layout), &x = *static_cast<Layout*>(b_layout),
               &y = *static_cast<Layout*>(d_layout);
  assay::FakeCublasLt& controls = fake_cublas_lt_controls;
  Heuristic checked;
  if (const int status = cublasLtMatmulAlgoCheck(nullptr, desc, a_layout, b_layout, nullptr,
                                                 d_layout, algorithm, &checked);
      status != kSuccess)
    return status;
  if (bytes != 1024 || workspace == nullptr || c != d) return kInvalid;
  if (controls.fails) return kExecutionFailed;
  ++controls.products;
  controls.scaled_products += op.a_scales == nullptr ? 0 : 1;
  std::memcpy(&controls.last_mark, algorithm, sizeof(controls.last_mark));
  controls.last_m = static_cast<int64_t>(x.columns);
  controls.last_operands = w.type;
  controls.last_scales = op.a_scales == nullptr ? -1 : op.a_mode;
  const bool integers = op.compute == 72;
  const double factor =
      integers ? *static_cast<const int32_t*>(alpha) : *static_cast<const float*>(alpha);
  const double keep =
      integers ? *static_cast<const int32_t*>(beta) : *static_cast<const float*>(beta);
  const Product product = {op, w, x, y, a, b, d, factor, keep};
  if (controls.enqueue != nullptr) {
    controls.enqueue(product);
  } else {
    product();
  }
  return kSuccess;
}

}  // extern "C"
