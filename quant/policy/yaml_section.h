// One mapping of a YAML document, read key by key: every error names origin, line and key, and a
// key that nobody asked for is an error. Internal to quant/policy.
#pragma once
#include <yaml-cpp/yaml.h>

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace assay {

// InvalidArgument with origin and line where the text is not YAML.
absl::StatusOr<YAML::Node> LoadYaml(std::string_view yaml, const std::string& origin);

class YamlSection {
 public:
  // `path` is where the mapping sits in the document ("recipes.int8"), for messages.
  // InvalidArgument when the node is not a mapping or repeats a key.
  static absl::StatusOr<YamlSection> Open(const YAML::Node& node, std::string origin,
                                          std::string path);

  // Absent keys give nullopt (or leave `out` alone); wrong types give InvalidArgument.
  absl::StatusOr<std::optional<std::string>> Text(const std::string& key);
  absl::Status Text(const std::string& key, std::string& out);
  absl::Status Number(const std::string& key, double minimum, double maximum, double& out);
  absl::StatusOr<std::optional<int>> Integer(const std::string& key);
  absl::StatusOr<std::vector<std::string>> TextList(const std::string& key);
  // The raw node of a key; undefined when absent.
  YAML::Node Child(const std::string& key);
  absl::StatusOr<YamlSection> Section(const std::string& key);  // InvalidArgument also when absent

  // After the last key was read: InvalidArgument for a key that was never asked for.
  absl::Status Finish() const;
  std::string where() const;  // "built-in:9: recipes.int8"
  absl::Status Error(const std::string& key, const std::string& what) const;

 private:
  YamlSection(YAML::Node node, std::string origin, std::string path)
      : node_(std::move(node)), origin_(std::move(origin)), path_(std::move(path)) {}
  absl::StatusOr<std::optional<std::string>> Scalar(const std::string& key);

  YAML::Node node_;
  std::string origin_, path_;
  std::set<std::string, std::less<>> known_;
};

}  // namespace assay
