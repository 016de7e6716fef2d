#include "engine/model/config_reader.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace assay {

using nlohmann::json;

const json* ConfigReader::Find(std::string_view key) const {
  if (!config_.is_object()) return nullptr;
  const auto found = config_.find(key);
  return found == config_.end() || found->is_null() ? nullptr : &*found;
}

absl::Status ConfigReader::Wrong(std::string_view key, std::string_view expected) const {
  const json* value = Find(key);
  // Hostile values can be long, and need not be UTF-8.
  const std::string shown =
      value == nullptr ? "absent"
                       : value->dump(-1, ' ', true, json::error_handler_t::replace).substr(0, 80);
  return absl::InvalidArgumentError(absl::StrCat("config key ", where_, std::string(key),
                                                 " must be ", std::string(expected),
                                                 ": value=", shown));
}

absl::StatusOr<int> ConfigReader::Size(std::string_view key) const {
  const json* value = Find(key);
  if (value == nullptr || !value->is_number_integer() ||
      (value->is_number_unsigned() && value->get<uint64_t>() > uint64_t{kMaxSize}) ||
      value->get<int64_t>() < 1 || value->get<int64_t>() > kMaxSize) {
    return Wrong(key, "an integer from 1 to 2^24");
  }
  return value->get<int>();
}
absl::StatusOr<int> ConfigReader::SizeOr(std::string_view key, int fallback) const {
  return Has(key) ? Size(key) : fallback;
}

absl::StatusOr<double> ConfigReader::Real(std::string_view key) const {
  const json* value = Find(key);
  if (value == nullptr || !value->is_number() || !std::isfinite(value->get<double>())) {
    return Wrong(key, "a number");
  }
  return value->get<double>();
}
absl::StatusOr<double> ConfigReader::RealOr(std::string_view key, double fallback) const {
  return Has(key) ? Real(key) : fallback;
}

absl::StatusOr<bool> ConfigReader::BoolOr(std::string_view key, bool fallback) const {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return Wrong(key, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> ConfigReader::TextOr(std::string_view key,
                                                 std::string_view fallback) const {
  const json* value = Find(key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) return Wrong(key, "text");
  return value->get<std::string>();
}

}  // namespace assay
