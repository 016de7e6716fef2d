#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/config.h"

namespace assay {
namespace {

// Aliases make a short text into a deep or endless one; options have up to three levels.
constexpr int kMostLevels = 16, kMostEntries = 10000;

// What a text comes to as it is flattened.
struct Flat {
  const std::string& origin;
  std::vector<YamlScalar> scalars;
  int levels = 0, entries = 0;
};

absl::Status Flatten(const YAML::Node& node, const std::string& prefix, Flat& out) {
  const std::string& origin = out.origin;
  for (const auto& entry : node) {
    const int line = entry.first.Mark().line + 1;
    if (++out.entries > kMostEntries || out.levels > kMostLevels) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ":", line, ": more than ", kMostEntries, " keys or ", kMostLevels,
                       " levels of them; does an alias stand inside its own anchor?"));
    }
    if (!entry.first.IsScalar()) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ":", line, ": a key must be plain text"));
    }
    const std::string key = absl::StrCat(prefix, entry.first.Scalar());
    if (entry.second.IsMap()) {
      ++out.levels;
      RETURN_IF_ERROR(Flatten(entry.second, key + ".", out));
      --out.levels;
    } else if (entry.second.IsScalar()) {
      out.scalars.push_back({key, entry.second.Scalar(), line});
    } else if (!entry.second.IsNull()) {  // "key:" alone = leave the default
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ":", line, ": ", key, ": expected one value, found a list"));
    }
  }
  return absl::OkStatus();
}

// Of its first content; 1 when it has none.
int LineOfSecondDocument(const std::vector<YAML::Node>& documents) {
  return std::max(documents[1].Mark().line, 0) + 1;
}

}  // namespace

absl::StatusOr<std::vector<YamlScalar>> FlattenYaml(std::string_view text,
                                                    std::string_view origin) {
  const std::string where(origin);
  Flat out{where, {}};
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(text));
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ":", LineOfSecondDocument(documents),
                       ": a second document begins ('---'), expected one"));
    }
    if (documents.empty() || documents[0].IsNull()) return std::move(out.scalars);
    const YAML::Node& root = documents[0];
    if (!root.IsMap()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ":1: expected a mapping of keys to values"));
    }
    RETURN_IF_ERROR(Flatten(root, "", out));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ":", e.mark.line + 1, ": not YAML: ", e.msg));
  }
  return std::move(out.scalars);
}

}  // namespace assay
