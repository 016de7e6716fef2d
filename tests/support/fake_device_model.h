// A FakeModel that keeps its logits to itself, as one on a GPU does: it gives candidates where they
// are wanted, rows where they are not, and what is undecided when it is asked. What it does not
// give is NaN.
#pragma once
#include <algorithm>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "engine/runtime/sampler.h"
#include "tests/support/fake_model.h"

namespace assay {

class FakeDeviceModel final : public Model {
 public:
  explicit FakeDeviceModel(FakeModel::Options options, bool fail_fetches = false)
      : model_(std::move(options)), fail_fetches_(fail_fetches) {}
  const ModelSpec& spec() const override { return model_.spec(); }
  const std::vector<LinearSlot>& slots() const override { return model_.slots(); }
  const LinearMap& linears() const override { return model_.linears(); }
  size_t other_weight_bytes() const override { return 0; }
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context) const override {
    return model_.scratch_bytes(rows, logit_rows, context);
  }

  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override {
    const auto vocab = static_cast<size_t>(spec().vocab);
    RETURN_IF_ERROR(model_.Forward(args, context));
    float* const out = args.out.as<float>();
    logits_.assign(out, out + args.candidates.size() * vocab);
    for (size_t row = 0; row < args.candidates.size(); ++row) {
      if (args.candidates[row].room.empty()) continue;
      Give({logits_.data() + row * vocab, vocab}, args.candidates[row]);
      std::fill_n(out + row * vocab, vocab, std::numeric_limits<float>::quiet_NaN());
    }
    return absl::OkStatus();
  }

  absl::Status FetchLogits(std::span<const RowCandidates> candidates,
                           MutableView out) const override {
    if (fail_fetches_) return absl::InternalError("the fake keeps its logits");
    const auto vocab = static_cast<size_t>(spec().vocab);
    for (size_t row = 0; row < candidates.size(); ++row) {
      if (!candidates[row].undecided) continue;
      std::copy_n(logits_.data() + row * vocab, vocab, out.as<float>() + row * vocab);
    }
    return absl::OkStatus();
  }

 private:
  static void Give(std::span<const float> logits, RowCandidates& to) {
    to.undecided = std::ranges::any_of(logits, [](float logit) { return logit != logit; });
    if (to.undecided) return;
    std::vector<RankedLogit> all;
    for (const float logit : logits) all.push_back({logit, static_cast<int32_t>(all.size())});
    std::ranges::stable_sort(all, std::ranges::greater(), &RankedLogit::logit);
    to.count = std::min(to.room.size(), all.size());
    std::copy_n(all.begin(), to.count, to.room.begin());
    to.sums.plain = TotalWeight(logits, all.front().logit, 1.0f);
    to.sums.scaled = TotalWeight(logits, all.front().logit, 1.0f / to.scale);
  }

  const FakeModel model_;
  const bool fail_fetches_;
  mutable std::vector<float> logits_;  // of the last step; the loop thread's
};

}  // namespace assay
