#include "quant/policy/yaml_section.h"

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace assay {
namespace {

std::string Where(const std::string& origin, const YAML::Node& node) {
  return absl::StrCat(origin, ":", node.Mark().line + 1, ": ");
}

}  // namespace

absl::StatusOr<YamlSection> YamlSection::Open(const YAML::Node& node, std::string origin,
                                              std::string path) {
  if (!node.IsMap()) {
    return absl::InvalidArgumentError(
        absl::StrCat(Where(origin, node), path, " must be a mapping of keys to values"));
  }
  std::set<std::string> seen;
  for (const auto& entry : node) {
    if (!entry.first.IsScalar()) {
      return absl::InvalidArgumentError(
          absl::StrCat(Where(origin, entry.first), "a key must be a plain word: in=", path));
    }
    if (!seen.insert(entry.first.Scalar()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(Where(origin, entry.first), "key appears twice: key=", entry.first.Scalar(),
                       " in=", path));
    }
  }
  return YamlSection(node, std::move(origin), std::move(path));
}

std::string YamlSection::where() const { return absl::StrCat(Where(origin_, node_), path_); }

YAML::Node YamlSection::Child(const std::string& key) {
  known_.emplace(key);
  return node_[key];
}

absl::Status YamlSection::Error(const std::string& key, const std::string& what) const {
  const YAML::Node child = node_[key];
  return absl::InvalidArgumentError(
      absl::StrCat(Where(origin_, child.IsDefined() ? child : node_), what,
                   ": key=", path_.empty() ? "" : absl::StrCat(path_, "."), key,
                   child.IsDefined() && child.IsScalar() ? " value=" + child.Scalar() : ""));
}

absl::StatusOr<std::optional<std::string>> YamlSection::Scalar(const std::string& key) {
  const YAML::Node child = Child(key);
  if (!child.IsDefined()) return std::nullopt;
  if (!child.IsScalar()) return Error(key, "expected a single value");
  return child.Scalar();
}

absl::StatusOr<std::optional<std::string>> YamlSection::Text(const std::string& key) {
  ASSIGN_OR_RETURN(std::optional<std::string> text, Scalar(key));
  if (text.has_value() && text->empty()) return Error(key, "expected a text");
  return text;
}

absl::Status YamlSection::Text(const std::string& key, std::string& out) {
  ASSIGN_OR_RETURN(std::optional<std::string> text, Text(key));
  if (text.has_value()) out = *std::move(text);
  return absl::OkStatus();
}

absl::Status YamlSection::Number(const std::string& key, double minimum, double maximum,
                                 double& out) {
  ASSIGN_OR_RETURN(std::optional<std::string> text, Scalar(key));
  if (!text.has_value()) return absl::OkStatus();
  double value = 0;
  if (!absl::SimpleAtod(*text, &value) || !(value >= minimum && value <= maximum)) {
    return Error(key, absl::StrCat("expected a number from ", minimum, " to ", maximum));
  }
  out = value;
  return absl::OkStatus();
}

absl::StatusOr<std::optional<int>> YamlSection::Integer(const std::string& key) {
  ASSIGN_OR_RETURN(std::optional<std::string> text, Scalar(key));
  if (!text.has_value()) return std::nullopt;
  int value = 0;
  if (!absl::SimpleAtoi(*text, &value) || value < 0) {
    return Error(key, "expected a whole number from 0");
  }
  return value;
}

absl::StatusOr<std::vector<std::string>> YamlSection::TextList(const std::string& key) {
  const YAML::Node child = Child(key);
  std::vector<std::string> texts;
  if (!child.IsDefined()) return texts;
  if (!child.IsSequence()) return Error(key, "expected a list");
  for (const YAML::Node& item : child) {
    if (!item.IsScalar() || item.Scalar().empty()) return Error(key, "expected a list of texts");
    texts.push_back(item.Scalar());
  }
  return texts;
}

absl::StatusOr<YamlSection> YamlSection::Section(const std::string& key) {
  const YAML::Node child = Child(key);
  if (!child.IsDefined()) return Error(key, "missing");
  return Open(child, origin_, path_.empty() ? key : absl::StrCat(path_, ".", key));
}

absl::Status YamlSection::Finish() const {
  for (const auto& entry : node_) {
    if (known_.contains(entry.first.Scalar())) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        Where(origin_, entry.first), "unknown key: key=", path_.empty() ? "" : path_ + ".",
        entry.first.Scalar(), " known=", absl::StrJoin(known_, ",")));
  }
  return absl::OkStatus();
}

absl::StatusOr<YAML::Node> LoadYaml(std::string_view yaml, const std::string& origin) {
  try {
    return YAML::Load(std::string(yaml));
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ":", e.mark.line + 1, ": not YAML: ", e.msg));
  }
}

}  // namespace assay
