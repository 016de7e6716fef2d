// Whether the input of a version is still what it was admitted for: apart from whether its answers
// still agree with the reference (drift_monitor.h). Input that moves is not an error of the
// version, but what its scales were calibrated to, and its certificate measured on, is then no
// longer what it serves.
//
// Looked at: how much static scales cut off, how far inputs of linears reach and which of their
// channels stand out, against what verification saw (LayerReport); how long requests are and of
// which tokens, against the first that were served (traffic_shape.h). One thread uses it.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "engine/lifecycle/input_profile.h"
#include "engine/lifecycle/report.h"
#include "engine/lifecycle/traffic_shape.h"

namespace assay {

struct InputDriftStatus {
  int64_t requests = 0;  // that were looked at
  bool shifted = false;
  std::string cause;  // why: a sentence
  // Of the linear where it stands out most: the share of its input that its static scale cuts off,
  // and that share at admission. nullopt: no linear has such a scale, or too little was seen.
  std::optional<double> saturation;
  double saturation_admitted = 0;
  std::string saturated_layer;
  std::optional<double> range;  // largest value now / at admission, where that ratio is largest
  std::string range_layer;
  // Channels that stand out both now and at admission / those that do at either time.
  std::optional<double> outlier_overlap;
  std::optional<double> length_psi, token_psi;  // beyond chance
};

class InputDrift {
 public:
  // Requests per window; the last one to two windows are looked at, from kFewest on.
  static constexpr int kWindow = 128, kFewest = 32;
  // Shifted above these (overlap: below), and again not shifted where all have come back by a good
  // part of it. Saturation: of what it was at admission, and at least so much.
  static constexpr double kSaturationTimes = 4, kSaturationLeast = 1e-3;
  // The largest of many values is a noisy figure: healthy traffic was seen at up to 2.2 of a text
  // of its kind, so that the limit is 3.
  static constexpr double kRange = 3, kOverlap = 0.33, kPsi = 0.25;
  // Outlier channels are compared where a whole window was seen and there are this many over all
  // linears (at either time): of seven, three may change by luck.
  static constexpr int kFewestOutliers = 16;

  InputDrift(const AdmissionReport& report, const Model& model);
  // Where the next request's pass over `model` is seen; Add follows.
  InputProfile& profile() { return current_; }
  void Add(std::span<const int32_t> prompt);
  const InputDriftStatus& status() const { return status_; }

 private:
  struct Admitted {
    double absmax = 0, saturation = 0;
    std::vector<int32_t> outliers;
  };
  void CompareLayers();
  void Judge();
  const InputProfile empty_;
  std::map<std::string, Admitted, std::less<>> admitted_;
  InputProfile previous_, current_;
  TrafficShape shape_;
  InputDriftStatus status_;
  int in_current_ = 0, in_previous_ = 0;  // requests
};

}  // namespace assay
