#include "engine/lifecycle/input_profile.h"

#include <algorithm>
#include <cmath>

namespace assay {
namespace {

// The largest |x| of each channel over rows, and how many values lie outside of the range.
void Widen(const float* x, int64_t rows, std::vector<float>& absmax) {
  const auto k = static_cast<int64_t>(absmax.size());
  float* most = absmax.data();
  for (int64_t row = 0; row < rows; ++row, x += k) {
    for (int64_t c = 0; c < k; ++c) most[c] = std::max(most[c], std::abs(x[c]));
  }
}

int64_t CountOutside(const float* x, int64_t count, const StaticRange& range) {
  int64_t outside = 0;
  for (int64_t i = 0; i < count; ++i) outside += x[i] < range.low || x[i] > range.high ? 1 : 0;
  return outside;
}

}  // namespace

InputProfile::InputProfile(const Model& model) {
  for (const LinearSlot& slot : model.slots()) {
    if (slot.kind == LinearSlot::Kind::kEmbedding && !model.spec().tied_head) continue;
    const auto linear = model.linears().find(slot.name);
    if (linear == model.linears().end() || linear->second == nullptr) continue;
    Slot& mine = slots_[slot.name];
    mine.absmax.assign(static_cast<size_t>(slot.shape[1]), 0.0f);
    mine.range = linear->second->static_range();
    mine.decode_only = linear->second->problem().activation == ActivationMode::kA8Mix;
  }
}

LinearObserver InputProfile::observer() {
  return [this](const LinearSlot& slot, TensorView x, TensorView) { Observe(slot, x); };
}

void InputProfile::Observe(const LinearSlot& slot, TensorView x) {
  const auto found = slots_.find(slot.name);
  if (found == slots_.end()) return;
  Slot& mine = found->second;
  const int64_t rows = x.shape[0], k = x.shape[1];
  Widen(x.as<float>(), rows, mine.absmax);
  if (!mine.range.has_value()) return;
  const int64_t first = mine.decode_only ? std::clamp<int64_t>(first_decode_row_, 0, rows) : 0;
  mine.values += (rows - first) * k;
  mine.cut += CountOutside(x.as<float>() + first * k, (rows - first) * k, *mine.range);
}

void InputProfile::Merge(const InputProfile& other) {
  for (const auto& [name, theirs] : other.slots_) {
    const auto found = slots_.find(name);
    if (found == slots_.end()) continue;
    Slot& mine = found->second;
    for (size_t c = 0; c < mine.absmax.size(); ++c)
      mine.absmax[c] = std::max(mine.absmax[c], theirs.absmax[c]);
    mine.values += theirs.values;
    mine.cut += theirs.cut;
  }
}

InputSummary Summarize(const InputProfile::Slot& slot) {
  InputSummary summary;
  if (slot.absmax.empty()) return summary;
  summary.absmax = *std::max_element(slot.absmax.begin(), slot.absmax.end());
  summary.saturation = slot.saturation();
  std::vector<float> sorted = slot.absmax;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  summary.median = *middle;
  const double bar = InputProfile::kOutlier * summary.median;
  for (size_t c = 0; c < slot.absmax.size(); ++c) {
    if (bar > 0 && slot.absmax[c] >= bar) summary.outliers.push_back(static_cast<int32_t>(c));
  }
  return summary;
}

}  // namespace assay
