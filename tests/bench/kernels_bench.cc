// BM_linear/<kernel>/<scheme>/<activation>/<n>x<k>/m:<m>/t:<threads>: one linear layer as the
// engine calls it.
//
// Weights are cold: each call takes the next of so many packed copies that 160 MB lie between two
// uses of one, as in a forward pass over a whole model (the last-level cache here has 32 MB).
// Counters: GOPS = 2 n k m / time; GBs = packed weight bytes / time; both of the fastest call,
// since the machine is shared.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/arena.h"
#include "base/thread_pool.h"
#include "quant/linear.h"

namespace assay {
namespace {

struct Case {
  std::string kernel, scheme;
  ActivationMode activation;
  int64_t n, k, m;
  int threads;
};

constexpr size_t kColdBytes = size_t{160} << 20;

Tensor RandomWeight(Shape shape) {
  Tensor tensor = *Tensor::Create(CpuDevice(), shape, DType::kF32);
  std::minstd_rand random(1);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < shape.elements(); ++i) tensor.data<float>()[i] = normal(random);
  return tensor;
}

// Packed copies are kept between the cases of one shape: packing 160 MB takes a while.
std::vector<QuantizedLinear>& Copies(const Case& c) {
  static std::string key;
  static std::vector<QuantizedLinear> copies;
  const std::string wanted = absl::StrCat(c.kernel, "/", c.scheme, "/", c.n, "x", c.k);
  if (key == wanted) return copies;
  copies.clear();
  key = wanted;
  const Tensor w = RandomWeight({c.n, c.k});
  const QuantizedTensor q = *(*FindScheme(c.scheme))->Encode(w.view());
  size_t bytes = 0;
  while (bytes < kColdBytes) {
    auto linear = QuantizedLinear::Create(q, {}, {c.activation, c.kernel});
    if (!linear.ok()) {
      key.clear();
      break;
    }
    bytes += linear->bytes();
    copies.push_back(*std::move(linear));
  }
  return copies;
}

void RunLinear(benchmark::State& state, const Case& c) {
  std::vector<QuantizedLinear>& copies = Copies(c);
  if (copies.empty()) {
    state.SkipWithError("the kernel does not support this problem on this host");
    return;
  }
  ThreadPool pool({.num_threads = c.threads, .spin_us = 200, .pin = false});
  Arena arena = *Arena::Create(CpuDevice(), copies[0].scratch_bytes(c.m) + 4096);
  ComputeContext context{pool, arena};
  const Tensor x = RandomWeight({c.m, c.k});
  Tensor y = *Tensor::Create(CpuDevice(), {c.m, c.n}, DType::kF32);
  std::fill_n(y.data<float>(), c.m * c.n, 0.0f);
  size_t next = 0;
  std::vector<double> seconds;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    copies[next].Forward(x.view(), y.mutable_view(), context);
    const auto stop = std::chrono::steady_clock::now();
    next = (next + 1) % copies.size();
    seconds.push_back(std::chrono::duration<double>(stop - start).count());
  }
  // The fastest tenth: a quiet machine's time, without the luck of a single call.
  const size_t tenth = seconds.size() / 10;
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(tenth), seconds.end());
  const double best = seconds[tenth];
  state.counters["us"] = best * 1e6;
  state.counters["GOPS"] = 2e-9 * static_cast<double>(c.n * c.k * c.m) / best;
  state.counters["GBs"] = 1e-9 * static_cast<double>(copies[0].bytes()) / best;
}

void Register() {
  struct Layer {
    int64_t n, k;
  };
  const Layer layers[] = {{576, 576}, {960, 576}, {3072, 576}, {576, 1536}, {49152, 576}};
  struct Family {
    const char *kernel, *scheme;
    ActivationMode activation;
  };
  const Family families[] = {{"avx2_int8", "int8_channel", ActivationMode::kA8Token},
                             {"avx2_int8", "int8_channel", ActivationMode::kA16},
                             {"avx2_int8", "int8_group:g32", ActivationMode::kA16},
                             {"avx2_int8", "int4_group", ActivationMode::kA16},
                             {"avx2_f32", "f32", ActivationMode::kA16},
                             {"avx2_f32", "bf16", ActivationMode::kA16},
                             {"avx2_f32", "int8_channel", ActivationMode::kA16},
                             {"avx512_int8", "int8_channel", ActivationMode::kA8Token},
                             {"avx512_int8", "int8_channel", ActivationMode::kA16},
                             {"avx512_int8", "int8_group:g32", ActivationMode::kA16},
                             {"avx512_int8", "int4_group", ActivationMode::kA16},
                             {"avx512_f32", "f32", ActivationMode::kA16},
                             {"avx512_f32", "bf16", ActivationMode::kA16},
                             {"avx512_f32", "int8_channel", ActivationMode::kA16}};
  for (const Family& f : families) {
    for (const Layer& layer : layers) {
      for (const int threads : {1, 2}) {
        for (const int64_t m : {1, 2, 4, 8, 16, 32, 64, 256}) {
          const Case c = {f.kernel, f.scheme, f.activation, layer.n, layer.k, m, threads};
          const std::string name = absl::StrCat("BM_linear/", f.kernel, "/", f.scheme, "/",
                                                std::string(Name(f.activation)), "/", layer.n, "x",
                                                layer.k, "/m:", m, "/t:", threads);
          benchmark::RegisterBenchmark(name.c_str(),
                                       [c](benchmark::State& state) { RunLinear(state, c); })
              ->UseRealTime()
              ->MinTime(0.15);
        }
      }
    }
  }
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  assay::Register();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
