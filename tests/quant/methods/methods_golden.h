// tests/golden/methods/methods.json.xz: one layer and what reference algorithms made of it.
#pragma once
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "quant/methods/input_statistics.h"
#include "quant/scheme.h"
#include "tests/support/golden.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {

template <typename T>
std::vector<T> FromBase64(const nlohmann::json& text) {
  std::string bytes;
  EXPECT_TRUE(absl::Base64Unescape(text.get<std::string>(), &bytes));
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

struct GoldenLayer {
  nlohmann::json json = ReadGoldenJson("methods/methods.json.xz");
  int64_t n = json["n"], k = json["k"], tokens = json["tokens"];
  Tensor w = TensorOf({n, k}, FromBase64<float>(json["w"]));
  Tensor x = Inputs("x"), x_full = Inputs("x_full");

  // Stored as int8, in sixteenths.
  Tensor Inputs(const char* name) const {
    std::vector<float> values;
    for (const int8_t v : FromBase64<int8_t>(json[name])) values.push_back(v / 16.0f);
    return TensorOf({tokens, k}, values);
  }
  InputStatistics Statistics(InputStatisticsOptions options = {.hessian = true}) const {
    InputStatistics statistics = InputStatistics::Create(k, options).value();
    EXPECT_OK(options.cross ? statistics.Update(x.view(), x_full.view(), nullptr)
                            : statistics.Update(x.view(), nullptr));
    return statistics;
  }
};
inline const GoldenLayer& Golden() {
  static const GoldenLayer& layer = *new GoldenLayer;
  return layer;
}

inline std::vector<float> Decoded(const QuantizedTensor& q) {
  std::vector<float> out(static_cast<size_t>(q.shape.elements()));
  EXPECT_OK(q.scheme->DecodeRows(q, 0, q.shape[0], std::span<float>(out)));
  return out;
}

// A layer of [n, k] whose input is correlated and has outlier channels: where methods differ.
// x = latent mixing, 1 channel in 37 six times as large.
struct HardLayer {
  HardLayer(int64_t n, int64_t k, int64_t tokens, uint64_t seed)
      : w(RandomTensor({n, k}, seed, 0.05f)),
        x(Inputs(k, tokens, seed + 1)),
        held_out(Inputs(k, tokens, seed + 1, tokens)) {}

  static Tensor Inputs(int64_t k, int64_t tokens, uint64_t seed, int64_t skip = 0) {
    constexpr int64_t kLatent = 24;
    const std::vector<float> mixing = RandomNormal(kLatent * k, seed, 0.25f);
    const std::vector<float> latent = RandomNormal((skip + tokens) * kLatent, seed + 100);
    std::vector<float> values = RandomNormal((skip + tokens) * k, seed + 200, 0.5f);
    values.erase(values.begin(), values.begin() + skip * k);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t j = 0; j < k; ++j) {
        float& v = values[t * k + j];
        for (int64_t l = 0; l < kLatent; ++l)
          v += latent[(skip + t) * kLatent + l] * mixing[l * k + j];
        if (j % 37 == 5) v *= 6;
      }
    }
    return TensorOf({tokens, k}, values);
  }

  // Mean squared error of the output on inputs that no method has seen.
  double HeldOutError(const QuantizedTensor& q) const { return HeldOutError(Decoded(q)); }
  double HeldOutError(const std::vector<float>& decoded) const {
    const int64_t n = w.shape()[0], k = w.shape()[1], tokens = held_out.shape()[0];
    double error = 0;
    std::vector<float> difference(n * k);
    for (int64_t i = 0; i < n * k; ++i) difference[i] = w.data<float>()[i] - decoded[i];
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t row = 0; row < n; ++row) {
        double sum = 0;
        for (int64_t j = 0; j < k; ++j)
          sum += static_cast<double>(difference[row * k + j]) * held_out.data<float>()[t * k + j];
        error += sum * sum;
      }
    }
    return error / static_cast<double>(tokens * n);
  }

  Tensor w, x, held_out;
};

}  // namespace assay
