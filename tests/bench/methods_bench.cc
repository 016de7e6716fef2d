// BM_statistics/<n>x<k>, BM_rounding/<spelling>/<n>x<k>, BM_awq/<n>x<k>, BM_flex_smooth/<n>x<k>:
// seconds per linear layer of SmolLM2-135M's shapes on one thread; statistics: per 2048 rows. CPU
// time is the figure to read where the machine is shared.
#include <benchmark/benchmark.h>

#include <memory>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "quant/methods/rounding.h"
#include "quant/methods/transforms.h"

namespace assay {
namespace {

Tensor Random(Shape shape, float stddev) {
  Tensor tensor = *Tensor::Create(CpuDevice(), shape, DType::kF32);
  std::minstd_rand random(1);
  std::normal_distribution<float> normal(0, stddev);
  for (int64_t i = 0; i < shape.elements(); ++i) tensor.data<float>()[i] = normal(random);
  return tensor;
}

struct Layer {
  Layer(int64_t n, int64_t k)
      : w(Random({n, k}, 0.05f)),
        x(Random({2048, k}, 1)),
        input(InputStatistics::Create(k, {.hessian = true, .sample_rows = 256}).value()) {
    for (int64_t tokens = 0; tokens < 4 * k; tokens += 2048) (void)input.Update(x.view(), nullptr);
  }
  Tensor w, x;
  InputStatistics input;
};

// Whatever group scheme is there: rounding works on what users quantize to.
const QuantScheme& Scheme() {
  const absl::StatusOr<const QuantScheme*> found = FindScheme("int4_group:g64");
  return found.ok() ? **found : *FindScheme("int8_channel").value();
}

void Register(int64_t n, int64_t k) {
  const auto layer = std::make_shared<Layer>(n, k);
  const std::string shape = absl::StrCat("/", n, "x", k);
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(),
                                 [run](benchmark::State& state) {
                                   for (auto _ : state) {
                                     if (!run()) state.SkipWithError("failed");
                                   }
                                 })
        ->Unit(benchmark::kMillisecond)
        ->Iterations(1);
  };
  add("BM_statistics" + shape,
      [layer] { return layer->input.Update(layer->x.view(), nullptr).ok(); });
  for (const char* name : {"nearest", "mse", "imatrix", "awq_clip", "kl", "gptq", "gptq:act_order",
                           "learned:iterations=20"}) {
    add(absl::StrCat("BM_rounding/", name, shape), [layer, name] {
      return FindRounding(name)
          .value()
          ->Quantize(layer->w.view(), Scheme(), &layer->input, {})
          .ok();
    });
  }
  add("BM_awq" + shape, [layer] {
    return AwqScales({{layer->w.view()}, &layer->input, {}}, {.scheme = &Scheme()}).ok();
  });
  add("BM_flex_smooth" + shape, [layer] {
    return FlexSmooth({{layer->w.view()}, &layer->input, {}}, {}).ok();
  });
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  assay::Register(1536, 576);
  assay::Register(576, 1536);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
