// Means and scales of a decoder's keys, channel by channel, for KV caches with integer codes
// (quant/linear_parts.h): keys have channels that are large in every token, and channels that
// queries hardly look at. One thread calls.
#pragma once
#include <map>
#include <string>

#include "engine/lifecycle/calibrate.h"
#include "quant/linear_parts.h"

namespace assay {

// How much is looked at: whole contexts, as the mean of a slow rotary channel depends on where the
// positions are.
inline constexpr CalibrationSize kKeyCalibration = {.samples = 4, .window = 1024};

// Slot name of the projection that gives the keys of a layer -> what was found for its channels:
// the mean, and sqrt(deviation of the key / root mean square of the query). That scale minimises
// the product of a row's range and of the error that its rounding leaves in a score (by Cauchy and
// Schwarz). The first four tokens of a sample are left out: what attention parks there (sinks) is
// like no other key.
//
// The model that `source` gives computes the keys, layer by layer, in f32 with an f32 cache.
// FailedPrecondition: a key is not finite; ResourceExhausted; whatever the source and run.progress
// return.
absl::StatusOr<std::map<std::string, KeyParts, std::less<>>> CalibrateKeys(
    const LayerSource& source, const CalibrationRun& run);

// What was measured of a layer's keys.
struct KeyMeasure {
  KeyParts keys;                 // as CalibrateKeys gives them
  std::vector<float> deviation;  // by channel
};
using KeyMeasures = std::map<std::string, KeyMeasure, std::less<>>;
absl::StatusOr<KeyMeasures> MeasureKeys(const LayerSource& source, const CalibrationRun& run);

// Compares what the served linears say of keys with the reference's own keys on another text, by
// slot: means and scales of another layer, or stale ones, change no function, only precision, so
// nothing else would name them. The samples should be as long as those of the calibration. Empty:
// nothing is wrong.
std::map<std::string, std::string> FindForeignKeys(const KeyMeasures& reference,
                                                   const LinearMap& served);

}  // namespace assay
