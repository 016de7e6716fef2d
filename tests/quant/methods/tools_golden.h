// tests/golden/methods/tools.json.xz: what the reference tools themselves made of one layer.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "base/float16.h"
#include "tests/quant/methods/methods_golden.h"

namespace assay {

struct ToolsGolden {
  nlohmann::json json = ReadGoldenJson("methods/tools.json.xz");
  int64_t n = json["n"], k = json["k"];
  // [n, k], exact in f16.
  std::vector<float> weights = FromF16(json["w"]);
  Tensor w = TensorOf({n, k}, weights);

  static std::vector<float> FromF16(const nlohmann::json& text) {
    std::vector<float> values;
    for (const uint16_t v : FromBase64<uint16_t>(text)) values.push_back(F16ToF32(v));
    return values;
  }
  // The tools' two linears behind one norm: rows [0, n / 4) and the rest, times `factors` [k].
  std::array<Tensor, 2> TwoLinears(const std::vector<float>& factors = {}) const {
    std::vector<float> values = weights;
    for (size_t i = 0; i < values.size() && !factors.empty(); ++i)
      values[i] /= factors[i % factors.size()];
    const auto middle = values.begin() + n / 4 * k;
    return {TensorOf({n / 4, k}, {values.begin(), middle}),
            TensorOf({n - n / 4, k}, {middle, values.end()})};
  }
};
inline const ToolsGolden& Tools() {
  static const ToolsGolden& golden = *new ToolsGolden;
  return golden;
}

inline std::vector<float> ValuesOf(const Tensor& t) {
  return {t.data<float>(), t.data<float>() + t.shape().elements()};
}
// methods.json's x [tokens, k]; `alive`: its dead channel 17 has the next one's values.
inline std::vector<float> GoldenInput(bool alive = false) {
  std::vector<float> x = ValuesOf(Golden().x);
  const auto k = static_cast<size_t>(Golden().k);
  for (size_t at = 17; alive && at < x.size(); at += k) x[at] = x[at + 1];
  return x;
}
inline InputStatistics StatisticsOf(const std::vector<float>& x, int64_t k,
                                    const InputStatisticsOptions& options = {}) {
  InputStatistics statistics = InputStatistics::Create(k, options).value();
  const Tensor tensor = TensorOf({static_cast<int64_t>(x.size()) / k, k}, x);
  EXPECT_OK(statistics.Update(tensor.view(), nullptr));
  return statistics;
}

inline double LargestRelative(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::fabs(static_cast<double>(a[i]) - b[i]) / std::fabs(b[i]));
  return most;
}
template <typename T>
int64_t CountDifferences(const std::vector<T>& a, const std::vector<T>& b) {
  EXPECT_EQ(a.size(), b.size());
  int64_t different = 0;
  for (size_t i = 0; i < a.size(); ++i) different += a[i] != b[i];
  return different;
}

}  // namespace assay
