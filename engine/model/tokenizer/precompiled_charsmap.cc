#include "engine/model/tokenizer/precompiled_charsmap.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/normalizer.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

constexpr size_t kLongestClusterBytes = 5;  // longer ones are taken character by character

uint32_t Label(uint32_t unit) { return unit & (1u << 31 | 0xFF); }
uint32_t Offset(uint32_t unit) { return (unit >> 10) << ((unit & 1u << 9) >> 6); }
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }

}  // namespace

absl::StatusOr<PrecompiledCharsmap> PrecompiledCharsmap::Parse(std::string_view bytes) {
  uint32_t array_bytes = 0;
  if (bytes.size() >= sizeof(array_bytes)) std::memcpy(&array_bytes, bytes.data(), 4);
  if (array_bytes == 0 || array_bytes % 4 != 0 || array_bytes > bytes.size() - 4) {
    return absl::InvalidArgumentError(absl::StrCat("precompiled_charsmap: double array of ",
                                                   array_bytes, " bytes does not fit into ",
                                                   bytes.size()));
  }
  PrecompiledCharsmap map;
  map.units_.resize(array_bytes / 4);
  std::memcpy(map.units_.data(), bytes.data() + 4, array_bytes);
  map.replacements_ = bytes.substr(4 + array_bytes);
  return map;
}

std::optional<PrecompiledCharsmap::Rule> PrecompiledCharsmap::Match(std::string_view text,
                                                                    bool longest) const {
  std::optional<Rule> best;
  uint32_t node = Offset(units_[0]);
  for (size_t i = 0; i < text.size(); ++i) {
    const uint32_t byte = static_cast<unsigned char>(text[i]);
    node ^= byte;
    if (byte == 0 || node >= units_.size() || Label(units_[node]) != byte) break;
    const uint32_t unit = units_[node];
    node ^= Offset(unit);
    if (!HasLeaf(unit)) continue;
    if (node >= units_.size()) break;
    const size_t at = units_[node] & ~(1u << 31);
    if (at >= replacements_.size()) break;
    const size_t end = std::min(replacements_.find('\0', at), replacements_.size());
    best = Rule{i + 1, std::string_view(replacements_).substr(at, end - at)};
    if (!longest) break;
  }
  return best;
}

absl::StatusOr<std::string> PrecompiledCharsmap::NormalizeByLongest(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const std::optional<Rule> rule = Match(text.substr(at), true);
    const size_t length =
        rule.has_value() ? rule->length : std::min(Utf8Length(text[at]), text.size() - at);
    out += rule.has_value() ? rule->replacement : text.substr(at, length);
    if (out.size() > MostNormalized(text.size())) return GrewTooLong(out.size(), text.size());
    at += length;
  }
  return out;
}

absl::StatusOr<std::string> PrecompiledCharsmap::NormalizeByGrapheme(std::string_view text) const {
  std::string out;
  out.reserve(text.size());
  size_t begin = 0;
  for (const size_t end : ClusterEnds(text)) {
    const std::string_view cluster = text.substr(begin, end - begin);
    begin = end;
    const std::optional<Rule> whole =
        cluster.size() <= kLongestClusterBytes ? Match(cluster, false) : std::nullopt;
    const auto take = [&](CodePoint, size_t from, size_t to) {
      if (out.size() > MostNormalized(text.size())) return;  // clusters have no bound
      const std::string_view character = cluster.substr(from, to - from);
      const std::optional<Rule> rule = Match(character, false);
      out += rule.has_value() ? rule->replacement : character;
    };
    if (whole.has_value()) {
      out += whole->replacement;
    } else {
      ForEachCodePoint(cluster, take);
    }
    if (out.size() > MostNormalized(text.size())) return GrewTooLong(out.size(), text.size());
  }
  return out;
}

}  // namespace assay
