// assay-server whose models go bad on request: at SIGUSR1 the calibrated scales of the KV cache of
// every version that serves are spoiled, or, where it has none, one weight is overwritten with
// another layer's (in a copy: what is spoiled is which model Forward runs); at SIGUSR2 of the
// newest version only. Versions that are admitted later are sound; SPOILABLE_ADMISSION_SECONDS
// holds them up for so long. For loadtest/scenarios/drift.py, tests/e2e/drift_test.py and
// tests/e2e/versions_test.py.
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/lifecycle/admission_stages.h"
#include "engine/model/checkpoint.h"
#include "tests/e2e/serve_with_hooks.h"

namespace assay {
namespace {

std::atomic<int> versions{0};                  // that have gone into service
std::atomic<int> first_bad{0}, first_good{0};  // from the one to before the other are spoiled

void Spoil(int signal) {
  first_bad.store(signal == SIGUSR2 ? versions.load() - 1 : 0);
  first_good.store(versions.load());
}

class SpoilableModel final : public Model {
 public:
  SpoilableModel(std::shared_ptr<const Model> proven, std::shared_ptr<const Model> spoiled)
      : proven_(std::move(proven)), spoiled_(std::move(spoiled)), number_(versions.fetch_add(1)) {}
  const ModelSpec& spec() const override { return proven_->spec(); }
  const std::vector<LinearSlot>& slots() const override { return proven_->slots(); }
  const LinearMap& linears() const override { return proven_->linears(); }
  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override {
    const bool bad = number_ >= first_bad.load() && number_ < first_good.load();
    const KvKeys* keys = args.kv == nullptr ? nullptr : args.kv->layout().keys.get();
    if (bad && keys != nullptr) Spoil(*keys);
    return (bad && keys == nullptr ? *spoiled_ : *proven_).Forward(args, context);
  }
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context) const override {
    return proven_->scratch_bytes(rows, logit_rows, context);
  }
  size_t other_weight_bytes() const override { return proven_->other_weight_bytes(); }

 private:
  // Where they lie, for good: what the engine stores of every other channel from now on is a
  // thousand times too large.
  void Spoil(const KvKeys& keys) const {
    const MutexLock lock(mu_);
    if (!spoiled_keys_.insert(&keys).second) return;
    auto& scales = const_cast<std::vector<float>&>(keys.inverse_scale);
    for (size_t c = 0; c < scales.size(); c += 2) scales[c] *= 1000;
  }

  const std::shared_ptr<const Model> proven_, spoiled_;
  const int number_;
  mutable Mutex mu_;
  mutable std::set<const KvKeys*> spoiled_keys_ ABSL_GUARDED_BY(mu_);
};

// The weight of the last down_proj in place of the one before.
std::shared_ptr<const Model> WithSpoiledWeight(const Checkpoint& checkpoint, const Model& proven) {
  LinearMap linears = proven.linears();
  const auto down = [&](int from_last) {
    return absl::StrCat("model.layers.", proven.spec().layers - from_last, ".mlp.down_proj");
  };
  linears.find(down(2))->second = linears.find(down(1))->second;
  return FamilyOf(checkpoint).value()->build(proven.spec(), checkpoint, std::move(linears)).value();
}

std::shared_ptr<const Model> Spoilable(const std::string& path,
                                       std::shared_ptr<const Model> proven) {
  const auto checkpoint = OpenCheckpoint(path).value();
  std::shared_ptr<const Model> spoiled = WithSpoiledWeight(*checkpoint, *proven);
  return std::make_shared<const SpoilableModel>(std::move(proven), std::move(spoiled));
}

int Run(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: spoilable_server CHECKPOINT [flags of assay-server]\n");
    return 1;
  }
  const std::string path = argv[1];
  argv[1] = argv[0];
  std::signal(SIGUSR1, Spoil);
  std::signal(SIGUSR2, Spoil);
  AdmissionHooks hooks;
  const char* hold = std::getenv("SPOILABLE_ADMISSION_SECONDS");
  const absl::Duration wait = absl::Seconds(hold == nullptr ? 0 : std::atoi(hold));
  hooks.served = [path, wait](std::shared_ptr<const Model> proven) {
    if (versions.load() > 0) absl::SleepFor(wait);  // as long as a larger model takes
    return Spoilable(path, std::move(proven));
  };
  return ServeWithHooks(argc - 1, argv + 1, hooks);
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) { return assay::Run(argc, argv); }
