// Text and JSON of files that nobody vouches for.
// Thread rule: pure functions.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "base/status.h"

namespace assay {

// Offset of the first byte that is not part of well-formed UTF-8, or npos.
size_t FindInvalidUtf8(std::string_view text);

// For messages: in quotes, non-printing bytes escaped, cut after 80 bytes.
std::string Quoted(std::string_view text);

// Parses JSON text of at most 100 MB, 64 levels and 16 M values; the bounds are checked before
// anything is allocated. InvalidArgument: a bound is exceeded, or not UTF-8; DataLoss: not JSON.
// Messages begin with `file`.
absl::StatusOr<nlohmann::json> ParseBoundedJson(std::string_view text, const std::string& file);

}  // namespace assay
