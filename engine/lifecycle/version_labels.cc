#include "engine/lifecycle/version_labels.h"

#include "absl/strings/str_cat.h"

namespace assay {

std::string_view VersionLabels::LabelOf(int64_t version) const {
  if (version == 0) return "";
  if (version == stable) return "stable";
  if (version == canary) return "canary";
  return version == previous ? "previous" : "";
}

double VersionLabels::ShareOf(int64_t version) const {
  if (version == 0) return 0;
  const double to_canary = canary == 0 ? 0 : canary_share;
  if (version == stable) return 1 - to_canary;
  return version == canary ? to_canary : 0;
}

absl::StatusOr<int64_t> VersionLabels::VersionOf(std::string_view label) const {
  int64_t version = 0;
  if (label == "stable") {
    version = stable;
  } else if (label == "canary") {
    version = canary;
  } else if (label == "previous") {
    version = previous;
  } else {
    return absl::InvalidArgumentError(absl::StrCat(
        "'", std::string(label), "' is not a version label: expected stable, canary or previous"));
  }
  if (version != 0) return version;
  return absl::NotFoundError(absl::StrCat("no version has the label '", std::string(label), "'"));
}

void VersionLabels::Remove(int64_t version) {
  if (version == 0) return;
  if (version == previous) previous = 0;
  if (version == canary) canary = 0;
  if (version == stable) {
    stable = previous != 0 ? previous : canary;
    (previous != 0 ? previous : canary) = 0;
  }
  if (previous == 0) previous_until = absl::InfiniteFuture();
  if (canary == 0) canary_share = 0;
}

absl::StatusOr<VersionSelector> VersionSelector::Create(int64_t number, std::string_view label) {
  if (number < 0) {
    return absl::InvalidArgumentError(absl::StrCat("version must not be negative: ", number));
  }
  if (number != 0 && !label.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a request names a version or a label, not both: version=", number,
                     " version_label=", std::string(label)));
  }
  VersionSelector selector(number);
  selector.label = std::string(label);
  return selector;
}

bool TrafficSplit::NextIsCanary(double share) {
  position_ += 0x9E3779B97F4A7C15;  // the golden ratio's fraction * 2^64, odd
  return static_cast<double>(position_ >> 11) * 0x1p-53 < share;
}

}  // namespace assay
