#include <yaml-cpp/yaml.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "server/config.h"

namespace assay {
namespace {

absl::Status Flatten(const YAML::Node& node, const std::string& prefix, const std::string& origin,
                     std::vector<YamlScalar>& out) {
  for (const auto& entry : node) {
    const int line = entry.first.Mark().line + 1;
    if (!entry.first.IsScalar()) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ":", line, ": a key must be plain text"));
    }
    const std::string key = absl::StrCat(prefix, entry.first.Scalar());
    if (entry.second.IsMap()) {
      RETURN_IF_ERROR(Flatten(entry.second, key + ".", origin, out));
    } else if (entry.second.IsScalar()) {
      out.push_back({key, entry.second.Scalar(), line});
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
  std::vector<YamlScalar> out;
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(text));
    if (documents.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ":", LineOfSecondDocument(documents),
                       ": a second document begins ('---'), expected one"));
    }
    if (documents.empty() || documents[0].IsNull()) return out;
    const YAML::Node& root = documents[0];
    if (!root.IsMap()) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ":1: expected a mapping of keys to values"));
    }
    RETURN_IF_ERROR(Flatten(root, "", where, out));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ":", e.mark.line + 1, ": not YAML: ", e.msg));
  }
  return out;
}

}  // namespace assay
