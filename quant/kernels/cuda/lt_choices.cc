#include "quant/kernels/cuda/lt_choices.h"

#include <charconv>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/atomic_file.h"
#include "base/log.h"
#include "base/mapped_file.h"
#include "base/sha256.h"
#include "nlohmann/json.hpp"

namespace assay {
namespace {

using Json = nlohmann::json;
constexpr int kSchema = 1;

Json ToJson(const LtFoundOn& on) {
  return {{"gpu", on.gpu}, {"compute", on.compute}, {"driver", on.driver}, {"library", on.library}};
}

std::string PathIn(const std::string& directory, const LtFoundOn& on) {
  if (directory.empty()) return "";
  return absl::StrCat(directory, "/cublaslt-", Sha256Hex(ToJson(on).dump()).substr(0, 16), ".json");
}

std::optional<int64_t> IntegerOf(const Json& object, const char* name) {
  const auto found = object.find(name);
  if (found == object.end() || !found->is_number_integer()) return std::nullopt;
  return found->get<int64_t>();
}

std::optional<LtAlgorithm> AlgorithmOf(const Json& choice) {
  LtAlgorithm algorithm;
  const auto words = choice.find("algorithm");
  const std::optional<int64_t> workspace = IntegerOf(choice, "workspace");
  if (words == choice.end() || !words->is_array() || words->size() != algorithm.words.size() ||
      !workspace || *workspace < 0 || *workspace > static_cast<int64_t>(CublasLt::kWorkspaceBytes))
    return std::nullopt;
  algorithm.workspace_bytes = static_cast<size_t>(*workspace);
  for (size_t i = 0; i < algorithm.words.size(); ++i) {
    const Json& word = (*words)[i];
    if (!word.is_string()) return std::nullopt;
    const auto& text = word.get_ref<const std::string&>();
    const char* const end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, algorithm.words[i], 16);
    if (error != std::errc() || stop != end) return std::nullopt;
  }
  return algorithm;
}

}  // namespace

LtChoices::LtChoices(const std::string& directory, LtFoundOn found_on)
    : found_on_(std::move(found_on)), path_(PathIn(directory, found_on_)) {
  if (path_.empty()) return;
  const absl::StatusOr<std::string> text = ReadFile(path_);
  if (!text.ok()) return;
  if (const absl::Status status = Read(*text); !status.ok()) {
    choices_.clear();
    Log(LogLevel::kWarning, "choices of cuBLASLt algorithms are found anew",
        {{"path", path_}, {"reason", std::string(status.message())}});
  }
}

absl::Status LtChoices::Read(const std::string& text) {
  const Json file = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!file.is_object()) return absl::DataLossError("no JSON object");
  if (IntegerOf(file, "schema") != kSchema) return absl::DataLossError("another schema");
  const auto on = file.find("found_on");
  if (on == file.end() || *on != ToJson(found_on_))
    return absl::DataLossError("found on another GPU, driver or library");
  const auto choices = file.find("choices");
  if (choices == file.end() || !choices->is_array()) return absl::DataLossError("no choices");
  for (const Json& choice : *choices) {
    if (!choice.is_object()) return absl::DataLossError("a choice is no object");
    const auto m = IntegerOf(choice, "m"), n = IntegerOf(choice, "n"), k = IntegerOf(choice, "k"),
               operands = IntegerOf(choice, "operands"), scales = IntegerOf(choice, "scales");
    const std::optional<LtAlgorithm> algorithm = AlgorithmOf(choice);
    if (!m || !n || !k || !operands || !scales || !algorithm)
      return absl::DataLossError("a choice lacks a number");
    const LtShape shape = {static_cast<int>(*n), static_cast<int>(*k),
                           static_cast<LtType>(*operands), static_cast<LtScales>(*scales)};
    Add(shape, static_cast<int>(*m), *algorithm);
  }
  return absl::OkStatus();
}

std::optional<LtAlgorithm> LtChoices::Find(const LtShape& shape, int rows) const {
  const auto found = choices_.find({shape, rows});
  return found == choices_.end() ? std::nullopt : std::optional(found->second);
}

void LtChoices::Add(const LtShape& shape, int rows, const LtAlgorithm& algorithm) {
  choices_[{shape, rows}] = algorithm;
}

absl::Status LtChoices::Save() const {
  if (path_.empty()) return absl::OkStatus();
  Json choices = Json::array();
  for (const auto& [key, algorithm] : choices_) {
    Json words = Json::array();
    for (const uint64_t word : algorithm.words) words.push_back(absl::StrCat(absl::Hex(word)));
    const auto& [shape, rows] = key;
    choices.push_back({{"m", rows},
                       {"n", shape.n},
                       {"k", shape.k},
                       {"operands", static_cast<int>(shape.operands)},
                       {"scales", static_cast<int>(shape.scales)},
                       {"algorithm", std::move(words)},
                       {"workspace", algorithm.workspace_bytes}});
  }
  const Json file = {
      {"schema", kSchema}, {"found_on", ToJson(found_on_)}, {"choices", std::move(choices)}};
  return WriteFileAtomically(path_, file.dump(1) + "\n");
}

}  // namespace assay
