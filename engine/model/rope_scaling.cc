#include "engine/model/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

using nlohmann::json;

constexpr double kTwoPi = 2 * 3.14159265358979323846;

absl::StatusOr<double> PositiveReal(const ConfigReader& config, std::string_view key) {
  ASSIGN_OR_RETURN(const double value, config.Real(key));
  if (value > 0) return value;
  return absl::InvalidArgumentError(
      absl::StrCat("rope scaling needs ", std::string(key), " above 0: value=", value));
}

// Wavelengths beyond the original context are stretched by `factor`, short ones kept, those between
// blended.
absl::Status ScaleLlama3(const ConfigReader& scaling, std::vector<double>& inv_freq) {
  ASSIGN_OR_RETURN(const double factor, PositiveReal(scaling, "factor"));
  ASSIGN_OR_RETURN(const double low, PositiveReal(scaling, "low_freq_factor"));
  ASSIGN_OR_RETURN(const double high, PositiveReal(scaling, "high_freq_factor"));
  ASSIGN_OR_RETURN(const int context, scaling.Size("original_max_position_embeddings"));
  if (high <= low) {
    return absl::InvalidArgumentError(absl::StrCat(
        "llama3 rope scaling needs low_freq_factor < high_freq_factor: low=", low, " high=", high));
  }
  for (double& f : inv_freq) {
    const double turns = context * f / kTwoPi;  // within the original context
    if (turns < low) {
      f /= factor;
    } else if (turns <= high) {
      const double smooth = (turns - low) / (high - low);
      f = (1 - smooth) * f / factor + smooth * f;
    }
  }
  return absl::OkStatus();
}

double YarnScale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

struct Yarn {
  double theta = 0;
  int head_dim = 0, max_context = 0;
};

absl::Status ScaleYarn(const ConfigReader& scaling, const Yarn& yarn, std::vector<double>& inv_freq,
                       double& attention_scale) {
  ASSIGN_OR_RETURN(const int context,
                   scaling.SizeOr("original_max_position_embeddings", yarn.max_context));
  double factor = static_cast<double>(yarn.max_context) / context;
  if (scaling.Has("factor")) {
    ASSIGN_OR_RETURN(factor, PositiveReal(scaling, "factor"));
  }
  ASSIGN_OR_RETURN(double beta_fast, scaling.RealOr("beta_fast", 32));
  ASSIGN_OR_RETURN(double beta_slow, scaling.RealOr("beta_slow", 1));
  if (beta_fast == 0) beta_fast = 32;
  if (beta_slow == 0) beta_slow = 1;
  if (beta_fast < 0 || beta_slow < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "yarn needs beta_fast and beta_slow above 0: fast=", beta_fast, " slow=", beta_slow));
  }
  ASSIGN_OR_RETURN(const bool truncate, scaling.BoolOr("truncate", true));
  ASSIGN_OR_RETURN(const double mscale, scaling.RealOr("mscale", 0));
  ASSIGN_OR_RETURN(const double mscale_all, scaling.RealOr("mscale_all_dim", 0));
  const double natural = mscale != 0 && mscale_all != 0
                             ? YarnScale(factor, mscale) / YarnScale(factor, mscale_all)
                             : YarnScale(factor, 1);
  ASSIGN_OR_RETURN(attention_scale, scaling.RealOr("attention_factor", natural));

  // Dimension that turns `rotations` times within the original context.
  const auto dimension = [&](double rotations) {
    return yarn.head_dim * std::log(context / (rotations * kTwoPi)) / (2 * std::log(yarn.theta));
  };
  double low = dimension(beta_fast), high = dimension(beta_slow);
  if (truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, yarn.head_dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / factor * ramp + inv_freq[i] * (1 - ramp);
  }
  return absl::OkStatus();
}

const json kNoScaling = json::object();

}  // namespace

absl::StatusOr<RopeFrequencies> ReadRopeFrequencies(const ConfigReader& config, int head_dim,
                                                    int max_context) {
  const json* nested = config.Find("rope_parameters");
  const char* key = nested != nullptr ? "rope_parameters" : "rope_scaling";
  if (nested == nullptr) nested = config.Find("rope_scaling");
  if (nested != nullptr && !nested->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("config key ", key, " must be an object: type=", nested->type_name()));
  }
  const ConfigReader scaling(nested != nullptr ? *nested : kNoScaling, absl::StrCat(key, "."));
  Yarn yarn{.theta = 10000, .head_dim = head_dim, .max_context = max_context};
  const ConfigReader& theta = scaling.Has("rope_theta") ? scaling : config;
  if (theta.Has("rope_theta")) {
    ASSIGN_OR_RETURN(yarn.theta, theta.Real("rope_theta"));
  }
  if (yarn.theta <= 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("config key rope_theta must be above 1: value=", yarn.theta));
  }
  ASSIGN_OR_RETURN(const std::string old_type, scaling.TextOr("type", "default"));
  ASSIGN_OR_RETURN(const std::string type, scaling.TextOr("rope_type", old_type));

  std::vector<double> inv_freq(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) inv_freq[i] = std::pow(yarn.theta, -2.0 * i / head_dim);
  double attention_scale = 1;
  if (type == "linear") {
    ASSIGN_OR_RETURN(const double factor, PositiveReal(scaling, "factor"));
    for (double& f : inv_freq) f /= factor;
  } else if (type == "llama3") {
    RETURN_IF_ERROR(ScaleLlama3(scaling, inv_freq));
  } else if (type == "yarn") {
    RETURN_IF_ERROR(ScaleYarn(scaling, yarn, inv_freq, attention_scale));
  } else if (type != "default" && type != "none") {
    return absl::UnimplementedError(absl::StrCat("rope scaling is not supported: type=", type,
                                                 " (supported: linear, llama3, yarn)"));
  }
  return RopeFrequencies{{inv_freq.begin(), inv_freq.end()},
                         static_cast<float>(attention_scale),
                         static_cast<float>(yarn.theta)};
}

}  // namespace assay
