#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <sstream>

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
  int last_line() const { return last_line_; }  // where the last one begins, 1-based; 2 at most

  void OnDocumentStart(const YAML::Mark& mark) override {
    ++count_;
    last_line_ = std::max(mark.line, 0) + 1;
  }
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
  int count_ = 0, last_line_ = 1;
};

}  // namespace

absl::StatusOr<std::vector<YamlScalar>> FlattenYaml(std::string_view text,
                                                    std::string_view origin) {
  const std::string where(origin);
  Flat out{where, {}};
  try {
    const Documents documents{std::string(text)};
    if (documents.count() > 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, ":", documents.last_line(), ": a second document begins ('---'), expected one"));
    }
    const YAML::Node root = YAML::Load(std::string(text));
    if (root.IsNull()) return std::move(out.scalars);
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
