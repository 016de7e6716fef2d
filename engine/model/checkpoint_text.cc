#include "engine/model/checkpoint_text.h"

#include <unicode/utf8.h>

#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr size_t kMaxJsonBytes = 100'000'000;
constexpr int kMaxJsonDepth = 64;
constexpr size_t kMaxJsonValues = 16'000'000;

// Nesting and number of values, without parsing: brackets and commas outside of strings.
absl::Status CheckJsonBounds(std::string_view text, const std::string& file) {
  if (text.size() > kMaxJsonBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": JSON is too large: bytes=", text.size(), " limit=", kMaxJsonBytes));
  }
  int depth = 0;
  size_t values = 1;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
      continue;
    }
    if (c == '"') in_string = true;
    if (c == ',' || c == '[' || c == '{') ++values;
    if (c == ']' || c == '}') --depth;
    if ((c == '[' || c == '{') && ++depth > kMaxJsonDepth) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": JSON is nested too deeply: offset=", i, " limit=", kMaxJsonDepth));
    }
  }
  if (values > kMaxJsonValues) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": JSON holds too many values: values=", values, " limit=", kMaxJsonValues));
  }
  return absl::OkStatus();
}

}  // namespace

size_t FindInvalidUtf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  size_t next = 0;
  while (next < text.size()) {
    const size_t start = next;
    UChar32 code_point = 0;
    U8_NEXT(bytes, next, text.size(), code_point);
    if (code_point < 0) return start;
  }
  return std::string_view::npos;
}

std::string Quoted(std::string_view text) {
  constexpr size_t kShown = 80;
  return absl::StrCat("'", absl::CHexEscape(std::string(text.substr(0, kShown))),
                      text.size() > kShown ? "...'" : "'");
}

absl::StatusOr<nlohmann::json> ParseBoundedJson(std::string_view text, const std::string& file) {
  RETURN_IF_ERROR(CheckJsonBounds(text, file));
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": JSON is not UTF-8: offset=", bad,
                                                   " bytes=", Quoted(text.substr(bad, 8))));
  }
  nlohmann::json value = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (value.is_discarded())
    return absl::DataLossError(absl::StrCat(file, ": not well-formed JSON: bytes=", text.size()));
  return value;
}

}  // namespace assay
