// Typed look-ups in a checkpoint's config(), with errors that name the key, what it holds and what
// was expected. A key that is null counts as absent, as in transformers.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

namespace assay {

// Keeps a reference to `config`. Thread rule: pure.
class ConfigReader {
 public:
  // `where` goes in front of keys in messages: "rope_scaling." for a nested object.
  explicit ConfigReader(const nlohmann::json& config, std::string where = "")
      : config_(config), where_(std::move(where)) {}

  // InvalidArgument: absent, not an integer, or outside [1, kMaxSize].
  absl::StatusOr<int> Size(std::string_view key) const;
  absl::StatusOr<int> SizeOr(std::string_view key, int fallback) const;
  // InvalidArgument: absent, not a number, not finite.
  absl::StatusOr<double> Real(std::string_view key) const;
  absl::StatusOr<double> RealOr(std::string_view key, double fallback) const;
  absl::StatusOr<bool> BoolOr(std::string_view key, bool fallback) const;
  absl::StatusOr<std::string> TextOr(std::string_view key, std::string_view fallback) const;
  // The value, or nullptr when absent or null.
  const nlohmann::json* Find(std::string_view key) const;
  bool Has(std::string_view key) const { return Find(key) != nullptr; }

  // Larger than any hyperparameter of a real model; keeps products inside 64 bit.
  static constexpr int kMaxSize = 1 << 24;

 private:
  absl::Status Wrong(std::string_view key, std::string_view expected) const;

  const nlohmann::json& config_;
  const std::string where_;
};

}  // namespace assay
