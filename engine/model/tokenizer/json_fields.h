// Typed access to the fields of a tokenizer.json: never throws, and every error names the field and
// what was found. Thread rule: free functions, thread-safe.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace assay {

using Json = nlohmann::json;

// The field, or null when `object` has none or is not an object.
const Json& Field(const Json& object, std::string_view name);
// `value` as it would be written, shortened: for messages.
std::string Shown(const Json& value);

// InvalidArgument when the field is absent or of another type. `where` says which component it
// belongs to.
absl::StatusOr<std::string> RequireString(const Json& object, std::string_view name,
                                          std::string_view where);
absl::StatusOr<const Json*> RequireObject(const Json& object, std::string_view name,
                                          std::string_view where);
absl::StatusOr<const Json*> RequireArray(const Json& object, std::string_view name,
                                         std::string_view where);
// InvalidArgument when present, not null and of another type.
absl::StatusOr<bool> OptionalBool(const Json& object, std::string_view name, bool fallback);
absl::StatusOr<std::string> OptionalString(const Json& object, std::string_view name,
                                           std::string_view fallback);
absl::StatusOr<std::optional<int64_t>> OptionalInt(const Json& object, std::string_view name);
// An id that is a number in [0, limit).
absl::StatusOr<int32_t> ToTokenId(const Json& value, int64_t limit, std::string_view where);

// The components of a normalizer, pre-tokenizer, decoder or post-processor in their order: those of
// a Sequence, whose list is the field `list`, or the one that `json` is; none for null. `where` is
// for messages.
absl::StatusOr<std::vector<const Json*>> Components(const Json& json, std::string_view list,
                                                    std::string_view where);

}  // namespace assay
