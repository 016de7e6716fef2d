// The files of a Hugging Face directory around and between the safetensors.
#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint_text.h"
#include "engine/model/safetensors.h"

namespace assay {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// A name inside the model's directory: relative, without "..", so that a checkpoint cannot name
// files elsewhere.
bool IsInside(std::string_view name) {
  if (name.empty() || name.find('\0') != std::string_view::npos ||
      name.find('\\') != std::string_view::npos)
    return false;
  const fs::path path(name);
  return path.is_relative() &&
         std::ranges::none_of(path, [](const fs::path& part) { return part == ".."; });
}

std::string_view Text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

class DirectoryReader {
 public:
  DirectoryReader(fs::path directory, HuggingFaceFiles& result)
      : directory_(std::move(directory)), result_(result) {}

  // Maps the weights that the index names and merges their tensors.
  absl::Status ReadShards(const std::string& index_path);
  absl::Status ReadWeights(const std::string& path);
  absl::Status ReadConfig();
  absl::Status ReadTokenizer();

 private:
  // Null when the file does not exist. The file is kept: it counts towards ContentHash.
  absl::StatusOr<std::optional<std::string>> ReadText(const std::string& name);
  absl::StatusOr<json> ReadJson(const std::string& name);  // null when the file does not exist
  absl::StatusOr<json> ReadJsonObject(const std::string& name);
  absl::Status ReadSentenceTransformers(json& config);

  const fs::path directory_;
  HuggingFaceFiles& result_;
};

absl::Status DirectoryReader::ReadWeights(const std::string& path) {
  ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::Open(path));
  auto parsed = ParseSafetensors(file->bytes());
  if (!parsed.ok()) return Annotate(parsed.status(), path);
  for (StoredTensor& tensor : *parsed) {
    tensor.file = result_.files.size();
    result_.contents.tensors.push_back(std::move(tensor));
  }
  result_.files.push_back(std::move(file));
  return absl::OkStatus();
}

// weight_map as shard -> number of tensors, once every entry has been checked.
absl::StatusOr<std::map<std::string, size_t>> CheckWeightMap(const json& index,
                                                             const std::string& path) {
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (map == index.end() || !map->is_object() || map->empty()) {
    return absl::DataLossError(absl::StrCat(path, ": no 'weight_map' object with tensors in it"));
  }
  std::map<std::string, size_t> shards;
  for (const auto& [tensor, shard] : map->items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : shard.type_name();
    if (!shard.is_string() || !IsInside(name) || name.find('/') != std::string::npos ||
        !absl::EndsWith(name, ".safetensors")) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Quoted(tensor),
                       " is not in a .safetensors file of this directory: file=", Quoted(name)));
    }
    ++shards[name];
  }
  return shards;
}

absl::Status DirectoryReader::ReadShards(const std::string& index_path) {
  ASSIGN_OR_RETURN(const std::shared_ptr<const MappedFile> index_file,
                   MappedFile::Open(index_path));
  ASSIGN_OR_RETURN(const json index, ParseBoundedJson(Text(*index_file), index_path));
  ASSIGN_OR_RETURN(const auto shards, CheckWeightMap(index, index_path));
  for (const auto& [name, num_tensors] : shards) {
    const absl::Status status = ReadWeights((directory_ / name).string());
    if (absl::IsNotFound(status)) {
      return absl::DataLossError(absl::StrCat(
          index_path, ": a shard is missing: file=", Quoted(name), " tensors=", num_tensors));
    }
    RETURN_IF_ERROR(status);
  }
  result_.files.push_back(index_file);
  std::vector<StoredTensor>& tensors = result_.contents.tensors;
  if (const absl::Status status = SortByName(tensors); !status.ok())
    return Annotate(status, index_path);
  const json& map = index["weight_map"];
  for (const StoredTensor& t : tensors) {
    const auto entry = map.find(t.info.name);
    const std::string shard = fs::path(result_.files[t.file]->path()).filename().string();
    if (entry != map.end() && *entry == shard) continue;
    return absl::DataLossError(
        absl::StrCat(index_path, ": tensor ", Quoted(t.info.name),
                     " is in a shard that the index does not name for it: file=", Quoted(shard)));
  }
  if (tensors.size() == map.size()) return absl::OkStatus();
  for (const auto& [name, shard] : map.items()) {
    if (!std::ranges::binary_search(
            tensors, name, {},
            [](const StoredTensor& t) -> const std::string& { return t.info.name; })) {
      return absl::DataLossError(absl::StrCat(index_path, ": tensor ", Quoted(name),
                                              " is not in its shard: file=", shard.dump()));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<std::string>> DirectoryReader::ReadText(const std::string& name) {
  auto file = MappedFile::Open((directory_ / name).string());
  if (absl::IsNotFound(file.status())) return std::nullopt;
  if (!file.ok()) return file.status();
  std::string text(Text(**file));
  result_.files.push_back(*std::move(file));
  return text;
}

absl::StatusOr<json> DirectoryReader::ReadJson(const std::string& name) {
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadText(name));
  if (!text) return json();
  return ParseBoundedJson(*text, (directory_ / name).string());
}

absl::StatusOr<json> DirectoryReader::ReadJsonObject(const std::string& name) {
  ASSIGN_OR_RETURN(json value, ReadJson(name));
  if (value.is_object() || value.is_null()) return value;
  return absl::InvalidArgumentError(absl::StrCat(
      (directory_ / name).string(), ": expected a JSON object: type=", value.type_name()));
}

// modules.json lists the stages behind the encoder; {"pooling": <1_Pooling/config.json>,
// "normalize": bool, "modules":
// ["Transformer", ...], "max_seq_length": n}.
absl::Status DirectoryReader::ReadSentenceTransformers(json& config) {
  ASSIGN_OR_RETURN(const json modules, ReadJson("modules.json"));
  if (modules.is_null()) return absl::OkStatus();
  const std::string path = (directory_ / "modules.json").string();
  if (!modules.is_array())
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected a JSON array"));
  json result = {{"normalize", false}, {"modules", json::array()}};
  for (const json& module : modules) {
    const auto text = [&](const char* key) {
      const auto found = module.is_object() ? module.find(key) : module.end();
      return found != module.end() && found->is_string() ? found->get<std::string>()
                                                         : std::string();
    };
    const std::string type = text("type"), folder = text("path");
    const std::string kind = type.substr(type.rfind('.') + 1);
    if (kind.empty() || (!folder.empty() && !IsInside(folder))) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": unusable module: type=", Quoted(type), " path=", Quoted(folder)));
    }
    result["modules"].push_back(kind);
    if (kind == "Normalize") result["normalize"] = true;
    if (kind == "Pooling") {
      ASSIGN_OR_RETURN(result["pooling"],
                       ReadJsonObject((fs::path(folder) / "config.json").string()));
    }
  }
  ASSIGN_OR_RETURN(const json sentence, ReadJsonObject("sentence_bert_config.json"));
  if (sentence.is_object() && sentence.contains("max_seq_length"))
    result["max_seq_length"] = sentence["max_seq_length"];
  config["sentence_transformers"] = std::move(result);
  return absl::OkStatus();
}

absl::Status DirectoryReader::ReadConfig() {
  ASSIGN_OR_RETURN(json config, ReadJsonObject("config.json"));
  if (config.is_null()) config = json::object();
  ASSIGN_OR_RETURN(json generation, ReadJsonObject("generation_config.json"));
  if (!generation.is_null()) config["generation_config"] = std::move(generation);
  RETURN_IF_ERROR(ReadSentenceTransformers(config));
  result_.contents.config = std::move(config);
  return absl::OkStatus();
}

absl::Status DirectoryReader::ReadTokenizer() {
  ASSIGN_OR_RETURN(json tokenizer, ReadJsonObject("tokenizer.json"));
  ASSIGN_OR_RETURN(json config, ReadJsonObject("tokenizer_config.json"));
  if (config.is_null()) config = json::object();
  // transformers since 4.43 writes the chat template beside the config.
  ASSIGN_OR_RETURN(std::optional<std::string> chat_template, ReadText("chat_template.jinja"));
  if (chat_template && FindInvalidUtf8(*chat_template) != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat((directory_ / "chat_template.jinja").string(), ": not UTF-8"));
  }
  if (chat_template && !config.contains("chat_template"))
    config["chat_template"] = *std::move(chat_template);
  result_.contents.tokenizer = {{"format", "huggingface"},
                                {"tokenizer", std::move(tokenizer)},
                                {"config", std::move(config)}};
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HuggingFaceFiles> ReadHuggingFaceFiles(const std::string& weights) {
  HuggingFaceFiles result;
  DirectoryReader reader(fs::path(weights).parent_path(), result);
  RETURN_IF_ERROR(absl::EndsWith(weights, ".json") ? reader.ReadShards(weights)
                                                   : reader.ReadWeights(weights));
  RETURN_IF_ERROR(reader.ReadConfig());
  RETURN_IF_ERROR(reader.ReadTokenizer());
  return result;
}

}  // namespace assay
