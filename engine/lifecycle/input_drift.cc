#include "engine/lifecycle/input_drift.h"

#include <algorithm>

#include "absl/strings/str_format.h"

namespace assay {
namespace {

// A channel that stood out and is now below this, or one that did not and is now above that, has
// changed: what lies between is a matter of luck.
constexpr double kGone = InputProfile::kOutlier / 2, kNew = InputProfile::kOutlier * 2;

struct Overlap {
  int kept = 0, all = 0;
};

Overlap OverlapOf(const std::vector<int32_t>& before, const InputProfile::Slot& now,
                  double median) {
  Overlap overlap{0, static_cast<int>(before.size())};
  for (const int32_t channel : before)
    overlap.kept += now.absmax[static_cast<size_t>(channel)] >= kGone * median ? 1 : 0;
  for (size_t c = 0; c < now.absmax.size() && median > 0; ++c) {
    const bool known = std::binary_search(before.begin(), before.end(), static_cast<int32_t>(c));
    overlap.all += !known && now.absmax[c] >= kNew * median ? 1 : 0;
  }
  return overlap;
}

}  // namespace

InputDrift::InputDrift(const AdmissionReport& report, const Model& model)
    : empty_(model), previous_(model), current_(model) {
  for (const LayerReport& layer : report.layers) {
    if (layer.input_absmax <= 0) continue;  // not seen
    const auto slot = empty_.slots().find(layer.name);
    if (slot == empty_.slots().end()) continue;
    Admitted& admitted = admitted_[layer.name];
    admitted = {layer.input_absmax, layer.input_saturation, {}};
    const auto channels = static_cast<int32_t>(slot->second.absmax.size());
    for (const int32_t channel : layer.input_outliers) {
      if (channel >= 0 && channel < channels) admitted.outliers.push_back(channel);
    }
    std::sort(admitted.outliers.begin(), admitted.outliers.end());
  }
}

void InputDrift::Add(std::span<const int32_t> prompt) {
  shape_.Add(prompt);
  ++status_.requests;
  ++in_current_;
  CompareLayers();
  status_.length_psi = shape_.length_psi();
  status_.token_psi = shape_.token_psi();
  Judge();
  if (in_current_ < kWindow) return;
  previous_ = current_;
  in_previous_ = in_current_;
  current_ = empty_;
  in_current_ = 0;
}

void InputDrift::CompareLayers() {
  if (in_previous_ + in_current_ < kFewest) return;
  InputProfile seen = previous_;
  seen.Merge(current_);
  status_.saturation.reset();
  status_.range.reset();
  status_.outlier_overlap.reset();
  Overlap overlap;
  double worst = -1;
  for (const auto& [name, slot] : seen.slots()) {
    const auto admitted = admitted_.find(name);
    if (admitted == admitted_.end()) continue;
    const InputSummary now = Summarize(slot);
    const double excess = now.saturation - admitted->second.saturation;
    if (slot.values > 0 && excess > worst) {
      worst = excess;
      status_.saturation = now.saturation;
      status_.saturation_admitted = admitted->second.saturation;
      status_.saturated_layer = name;
    }
    const double range = now.absmax / admitted->second.absmax;
    if (range > status_.range.value_or(0)) {
      status_.range = range;
      status_.range_layer = name;
    }
    const Overlap here = OverlapOf(admitted->second.outliers, slot, now.median);
    overlap.kept += here.kept;
    overlap.all += here.all;
  }
  if (in_previous_ > 0 && overlap.all >= kFewestOutliers)
    status_.outlier_overlap = static_cast<double>(overlap.kept) / overlap.all;
}

void InputDrift::Judge() {
  // What was called shifted must come back by more than it went.
  const double ease = status_.shifted ? 0.75 : 1;
  const InputDriftStatus& s = status_;
  const double most = ease * (kSaturationTimes * s.saturation_admitted + kSaturationLeast);
  std::string cause;
  if (s.saturation.value_or(0) > most) {
    cause =
        absl::StrFormat("static scales cut off %.3g %% of the input of %s, %.3g %% at admission",
                        100 * *s.saturation, s.saturated_layer, 100 * s.saturation_admitted);
  } else if (s.range.value_or(0) > ease * kRange) {
    cause = absl::StrFormat("the input of %s reaches %.2f times as far as at admission",
                            s.range_layer, *s.range);
  } else if (s.outlier_overlap.value_or(1) < 1 - ease * (1 - kOverlap)) {
    cause = absl::StrFormat("other channels stand out than at admission: %.0f %% the same",
                            100 * *s.outlier_overlap);
  } else if (s.token_psi.value_or(0) > ease * kPsi) {
    cause = absl::StrFormat("other tokens than at first: PSI %.2f", *s.token_psi);
  } else if (s.length_psi.value_or(0) > ease * kPsi) {
    cause = absl::StrFormat("other lengths than at first: PSI %.2f", *s.length_psi);
  }
  status_.shifted = !cause.empty();
  status_.cause = std::move(cause);
}

}  // namespace assay
