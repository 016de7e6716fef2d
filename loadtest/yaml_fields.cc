#include "loadtest/yaml_fields.h"

#include <yaml-cpp/eventhandler.h>

#include <cmath>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace assay::load {
namespace {

// Counts documents. YAML::LoadAll does not come to an end where a document stops before its text
// does, as at ",a".
class Documents final : public YAML::EventHandler {
 public:
  explicit Documents(const std::string& text) {
    std::istringstream stream(text);
    YAML::Parser parser(stream);
    while (count_ < 2 && parser.HandleNextDocument(*this)) continue;
  }
  int count() const { return count_; }

  void OnDocumentStart(const YAML::Mark&) override { ++count_; }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t,
                const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}

 private:
  int count_ = 0;
};

}  // namespace

int CountYamlDocuments(const std::string& text) { return Documents(text).count(); }

YamlFields::YamlFields(const YAML::Node& node, std::string what, std::string origin,
                       absl::Status& error)
    : node_(node), what_(std::move(what)), origin_(std::move(origin)), error_(error) {
  if (!node_.IsMap()) {
    Fail(node_, absl::StrCat(what_, ": expected a mapping of keys to values"));
    return;
  }
  std::set<std::string> seen;
  for (const auto& entry : node_) {
    if (!entry.first.IsScalar()) {
      Fail(entry.first, "a key must be plain text");
    } else if (!seen.insert(entry.first.Scalar()).second) {
      Fail(entry.first, absl::StrCat("the key '", entry.first.Scalar(), "' is given twice"));
    }
  }
}

void YamlFields::Fail(const YAML::Node& at, const std::string& message) {
  if (!error_.ok()) return;
  error_ = absl::InvalidArgumentError(
      absl::StrCat(origin_, ":", std::max(at.Mark().line, 0) + 1, ": ", message));
}

YAML::Node YamlFields::Find(const std::string& key) const {
  if (!node_.IsMap()) return YAML::Node(YAML::NodeType::Undefined);
  for (const auto& entry : node_) {
    if (entry.first.IsScalar() && entry.first.Scalar() == key) return entry.second;
  }
  return YAML::Node(YAML::NodeType::Undefined);
}

bool YamlFields::Has(const std::string& key) const { return Find(key).IsDefined(); }

void YamlFields::Node(const std::string& key, const std::function<void(const YAML::Node&)>& read) {
  asked_.insert(key);
  const YAML::Node found = Find(key);
  if (error_.ok() && found.IsDefined()) read(found);
}

std::optional<std::string> YamlFields::Scalar(const std::string& key, const std::string& expected) {
  std::optional<std::string> out;
  Node(key, [&](const YAML::Node& found) {
    if (found.IsScalar()) {
      out = found.Scalar();
    } else {
      Fail(found.IsNull() ? node_ : found, absl::StrCat(key, ": expected ", expected));
    }
  });
  return out;
}

void YamlFields::Text(const std::string& key, std::string& out) {
  if (const auto text = Scalar(key, "text")) {
    if (text->empty()) return Fail(Find(key), absl::StrCat(key, ": is empty"));
    out = *text;
  }
}

void YamlFields::Bool(const std::string& key, bool& out) {
  const auto text = Scalar(key, "true or false");
  if (!text) return;
  if (*text != "true" && *text != "false") {
    return Fail(Find(key), absl::StrCat(key, ": expected true or false, found '", *text, "'"));
  }
  out = *text == "true";
}

void YamlFields::Number(const std::string& key, double least, double most, double& out) {
  const std::string expected = absl::StrCat("a number from ", least, " to ", most);
  const auto text = Scalar(key, expected);
  if (!text) return;
  double value = 0;
  if (!absl::SimpleAtod(*text, &value) || !(value >= least && value <= most)) {
    return Fail(Find(key), absl::StrCat(key, ": expected ", expected, ", found '", *text, "'"));
  }
  out = value;
}

void YamlFields::Whole(const std::string& key, int64_t least, int64_t most, int64_t& out) {
  const std::string expected = absl::StrCat("a whole number from ", least, " to ", most);
  const auto text = Scalar(key, expected);
  if (!text) return;
  int64_t value = 0;
  if (!absl::SimpleAtoi(*text, &value) || value < least || value > most) {
    return Fail(Find(key), absl::StrCat(key, ": expected ", expected, ", found '", *text, "'"));
  }
  out = value;
}

void YamlFields::Whole(const std::string& key, int64_t least, int64_t most, int& out) {
  int64_t value = out;
  Whole(key, least, most, value);
  out = static_cast<int>(value);
}

void YamlFields::Duration(const std::string& key, absl::Duration& out) {
  const std::string expected = "a duration above 0, such as 500ms or 2s";
  const auto text = Scalar(key, expected);
  if (!text) return;
  absl::Duration value;
  if (!absl::ParseDuration(*text, &value) || value <= absl::ZeroDuration() ||
      value > absl::Hours(24)) {
    return Fail(Find(key), absl::StrCat(key, ": expected ", expected, ", found '", *text, "'"));
  }
  out = value;
}

void YamlFields::Duration(const std::string& key, std::optional<absl::Duration>& out) {
  absl::Duration value = out.value_or(absl::ZeroDuration());
  Duration(key, value);
  if (value > absl::ZeroDuration()) out = value;
}

void YamlFields::Require(const std::string& key) {
  if (!Has(key)) Fail(node_, absl::StrCat(what_, ": the key '", key, "' is missing"));
}

void YamlFields::End() {
  if (!node_.IsMap()) return;
  for (const auto& entry : node_) {
    if (entry.first.IsScalar() && asked_.count(entry.first.Scalar()) == 0) {
      Fail(entry.first, absl::StrCat(what_, ": unknown key '", entry.first.Scalar(), "', expected ",
                                     absl::StrJoin(asked_, ", ")));
    }
  }
}

}  // namespace assay::load
