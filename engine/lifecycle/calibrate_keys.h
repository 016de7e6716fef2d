// Means and scales of a decoder's keys, channel by channel, for KV caches with integer codes
// (quant/linear_parts.h): keys have channels that are large in every token, and channels that
// queries hardly look at. One thread calls.
#pragma once
#include <map>
#include <string>

#include "engine/lifecycle/calibrate.h"
#include "quant/linear_parts.h"

namespace assay {

// Slot name of the projection that gives the keys of a layer -> what was found for its channels:
// the mean, and sqrt(deviation of the key / root mean square of the query). That scale minimises
// the product of a row's range and of the error that its rounding leaves in a score (by Cauchy and
// Schwarz). The first four tokens of a sample are left out: what attention parks there (sinks) is
// like no other key.
//
// `model` computes the keys, in f32 with an f32 cache. FailedPrecondition: a key is not finite;
// ResourceExhausted; whatever run.progress returns.
absl::StatusOr<std::map<std::string, KeyParts, std::less<>>> CalibrateKeys(
    const Model& model, const CalibrationRun& run);

}  // namespace assay
