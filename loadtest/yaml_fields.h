// The keys of one mapping of a YAML file: each is asked for once, and what nobody asked for is an
// error with file and line. The first error is kept; what is asked for after it does nothing, so
// that callers check once.
#pragma once
#include <yaml-cpp/yaml.h>

#include <functional>
#include <optional>
#include <set>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"

namespace assay::load {

// 0, 1 or 2 (and more). Throws YAML::Exception.
int CountYamlDocuments(const std::string& text);

class YamlFields {
 public:
  // `error` belongs to the whole file; `what` names the mapping in messages ("phase").
  YamlFields(const YAML::Node& node, std::string what, std::string origin, absl::Status& error);

  bool Has(const std::string& key) const;
  // Each leaves `out` as it is when the key is absent.
  void Text(const std::string& key, std::string& out);
  void Bool(const std::string& key, bool& out);
  void Number(const std::string& key, double least, double most, double& out);
  void Whole(const std::string& key, int64_t least, int64_t most, int64_t& out);
  void Whole(const std::string& key, int64_t least, int64_t most, int& out);
  void Duration(const std::string& key, absl::Duration& out);  // above 0
  void Duration(const std::string& key, std::optional<absl::Duration>& out);
  // The node of the key, for lists and mappings; nothing when absent.
  void Node(const std::string& key, const std::function<void(const YAML::Node&)>& read);
  void Require(const std::string& key);
  // After the last question: unknown keys.
  void End();

  void Fail(const YAML::Node& at, const std::string& message);
  bool ok() const { return error_.ok(); }
  const std::string& origin() const { return origin_; }
  absl::Status& error() { return error_; }

 private:
  // The scalar's text; nothing when absent, after an error, and with an error when it is none.
  std::optional<std::string> Scalar(const std::string& key, const std::string& expected);
  YAML::Node Find(const std::string& key) const;

  const YAML::Node node_;
  const std::string what_, origin_;
  absl::Status& error_;
  std::set<std::string> asked_;
};

}  // namespace assay::load
