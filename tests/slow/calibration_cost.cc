// What calibration costs: calibration_cost MODEL [windows] [tokens] [threads], by default 64 512 2.
// Walks the layers of the f32 model over the bundled text with the cheapest statistics (the largest
// magnitude of every channel), once as it is and once feeding every layer twice as true sequential
// order does. Prints wall and CPU seconds and the growth of the peak of resident memory.
#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <map>

#include "absl/strings/numbers.h"
#include "base/thread_pool.h"
#include "engine/lifecycle/calibrate.h"

namespace assay {
namespace {

struct Cost {
  double wall_s = 0, cpu_s = 0, peak_mb = 0;
};

Cost Now() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  const auto wall = std::chrono::steady_clock::now().time_since_epoch();
  return {std::chrono::duration<double>(wall).count(),
          seconds(usage.ru_utime) + seconds(usage.ru_stime),
          static_cast<double>(usage.ru_maxrss) / 1024};
}

absl::Status Measure(const char* what, const std::function<absl::Status()>& run) {
  const Cost before = Now();
  RETURN_IF_ERROR(run());
  const Cost after = Now();
  std::printf("%s: wall %.1f s, cpu %.1f s, peak %.0f MB (+%.0f MB)\n", what,
              after.wall_s - before.wall_s, after.cpu_s - before.cpu_s, after.peak_mb,
              after.peak_mb - before.peak_mb);
  return absl::OkStatus();
}

absl::Status Run(const std::string& path, CalibrationSize size, int threads) {
  ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(path));
  ASSIGN_OR_RETURN(const auto tokenizer, MakeTokenizer(checkpoint->tokenizer()));
  ASSIGN_OR_RETURN(std::shared_ptr<const Model> model, BuildUniform(*checkpoint, "f32", {}));
  ASSIGN_OR_RETURN(const CalibrationSet set,
                   LoadCalibrationSet("", tokenizer.get(), model->spec(), size));
  std::printf("%s\n%s\n", set.name.c_str(), ToText(set.coverage).c_str());
  ThreadPool pool({.num_threads = threads});
  std::map<std::string, std::vector<float>> peaks;
  const CollectorFactory largest = [&](const LinearSlot& slot) -> absl::StatusOr<InputCollector> {
    if (slot.layer < 0) return InputCollector();
    std::vector<float>& peak = peaks[slot.name];
    peak.assign(static_cast<size_t>(slot.shape[1]), 0);
    return InputCollector([&peak](TensorView x, TensorView) {
      const auto* values = x.as<float>();
      for (int64_t i = 0; i < x.shape.elements(); ++i) {
        float& most = peak[static_cast<size_t>(i % x.shape[1])];
        most = std::max(most, std::abs(values[i]));
      }
      return absl::OkStatus();
    });
  };
  const CalibrationRun run{set, pool, nullptr};
  RETURN_IF_ERROR(Measure("one pass", [&] { return CollectInputs(*model, run, largest); }));
  LayerWalkSteps steps{
      .collectors = largest,
      .finish = [](std::shared_ptr<const Model> same,
                   const auto&) -> absl::StatusOr<std::shared_ptr<const Model>> { return same; }};
  const ModelFamily* family = FamilyOf(*checkpoint).value();
  const StreamedLayers layers(*family, model->spec(), *checkpoint, pool);
  RETURN_IF_ERROR(Measure("layer by layer", [&] { return WalkLayers(layers, run, steps); }));
  steps.feed_quantized = true;
  return Measure("layer by layer, fed twice", [&] { return WalkLayers(layers, run, steps); });
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  assay::CalibrationSize size;
  int threads = 2;
  const bool understood = argc >= 2 && (argc < 3 || absl::SimpleAtoi(argv[2], &size.samples)) &&
                          (argc < 4 || absl::SimpleAtoi(argv[3], &size.window)) &&
                          (argc < 5 || absl::SimpleAtoi(argv[4], &threads));
  if (!understood) {
    std::fprintf(stderr, "usage: calibration_cost MODEL [windows [tokens [threads]]]\n");
    return 2;
  }
  const absl::Status status = assay::Run(argv[1], size, threads);
  if (!status.ok()) std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
