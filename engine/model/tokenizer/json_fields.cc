#include "engine/model/tokenizer/json_fields.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

absl::Status WrongType(std::string_view where, std::string_view name, std::string_view expected,
                       const Json& found) {
  return absl::InvalidArgumentError(absl::StrCat(std::string(where), where.empty() ? "" : ".",
                                                 std::string(name), " must be ",
                                                 std::string(expected), ": ", Shown(found)));
}

}  // namespace

const Json& Field(const Json& object, std::string_view name) {
  static const Json* const null = new Json();
  if (!object.is_object()) return *null;
  const auto found = object.find(name);
  return found == object.end() ? *null : *found;
}

std::string Shown(const Json& value) {
  if (value.is_null()) return "missing";
  if (value.is_object()) return absl::StrCat("an object of ", value.size(), " fields");
  if (value.is_array()) return absl::StrCat("an array of ", value.size());
  if (value.is_string()) return Printable(value.get_ref<const std::string&>());
  return value.dump();
}

absl::StatusOr<std::string> RequireString(const Json& object, std::string_view name,
                                          std::string_view where) {
  const Json& value = Field(object, name);
  if (!value.is_string()) return WrongType(where, name, "a string", value);
  return value.get<std::string>();
}

absl::StatusOr<const Json*> RequireObject(const Json& object, std::string_view name,
                                          std::string_view where) {
  const Json& value = Field(object, name);
  if (!value.is_object()) return WrongType(where, name, "an object", value);
  return &value;
}

absl::StatusOr<const Json*> RequireArray(const Json& object, std::string_view name,
                                         std::string_view where) {
  const Json& value = Field(object, name);
  if (!value.is_array()) return WrongType(where, name, "an array", value);
  return &value;
}

absl::StatusOr<bool> OptionalBool(const Json& object, std::string_view name, bool fallback) {
  const Json& value = Field(object, name);
  if (value.is_null()) return fallback;
  if (!value.is_boolean()) return WrongType("", name, "true or false", value);
  return value.get<bool>();
}

absl::StatusOr<std::string> OptionalString(const Json& object, std::string_view name,
                                           std::string_view fallback) {
  const Json& value = Field(object, name);
  if (value.is_null()) return std::string(fallback);
  if (!value.is_string()) return WrongType("", name, "a string", value);
  return value.get<std::string>();
}

absl::StatusOr<std::optional<int64_t>> OptionalInt(const Json& object, std::string_view name) {
  const Json& value = Field(object, name);
  if (value.is_null()) return std::nullopt;
  if (!value.is_number_integer()) return WrongType("", name, "an integer", value);
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return WrongType("", name, "an integer below 2^63", value);
  }
  return value.get<int64_t>();
}

absl::StatusOr<int32_t> ToTokenId(const Json& value, int64_t limit, std::string_view where) {
  const bool in_range =
      value.is_number_integer() &&
      (value.is_number_unsigned() ? value.get<uint64_t>() < static_cast<uint64_t>(limit)
                                  : value.get<int64_t>() >= 0 && value.get<int64_t>() < limit);
  if (!in_range) {
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(where), " must be a token id in [0, ", limit, "): ", Shown(value)));
  }
  return static_cast<int32_t>(value.get<int64_t>());
}

absl::StatusOr<std::vector<const Json*>> Components(const Json& json, std::string_view list,
                                                    std::string_view where) {
  std::vector<const Json*> components;
  std::vector<const Json*> open;  // a stack: a file may nest deeper than ours would be
  if (!json.is_null()) open.push_back(&json);
  while (!open.empty()) {
    const Json& next = *open.back();
    open.pop_back();
    ASSIGN_OR_RETURN(const std::string type, RequireString(next, "type", where));
    if (type != "Sequence") {
      components.push_back(&next);
      continue;
    }
    ASSIGN_OR_RETURN(const Json* parts, RequireArray(next, list, where));
    for (auto part = parts->rbegin(); part != parts->rend(); ++part) open.push_back(&*part);
  }
  return components;
}

}  // namespace assay
