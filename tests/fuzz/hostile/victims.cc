#include "tests/fuzz/hostile/victims.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/sha256.h"
#include "engine/lifecycle/artifact.h"
#include "engine/lifecycle/calibration_set.h"
#include "engine/model/tokenizer.h"
#include "tests/engine/model/families/model_runner.h"
#include "tests/fuzz/require.h"
#include "tests/support/fake_tokenizer.h"
#include "tests/support/golden.h"

namespace assay {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr char kArtifactModel[] = "models/llama3";

Victim GoldenFolder(const std::string& name) {
  Victim victim;
  const fs::path folder = GoldenPath("models/" + name);
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const std::string file = fs::relative(entry.path(), folder).string();
    if (!entry.is_regular_file() || file.starts_with("golden")) continue;
    victim.files[file] = ReadGolden("models/" + name + "/" + file);
    victim.targets.push_back(file);
  }
  return victim;
}

// The same as a shard with an index.
Victim Sharded(Victim victim) {
  const std::string shard = "model-00001-of-00001.safetensors";
  const std::string bytes = victim.files.extract("model.safetensors").mapped();
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  json map = json::object();
  const json header = json::parse(bytes.substr(sizeof(length), length));
  for (const auto& [name, unused] : header.items())
    if (name != "__metadata__") map[name] = shard;
  victim.files[shard] = bytes;
  victim.files["model.safetensors.index.json"] = json{{"weight_map", map}}.dump();
  victim.targets = {shard, "model.safetensors.index.json", "config.json"};
  return victim;
}

Victim WithTokenizer(const std::string& name) {
  Victim victim = GoldenFolder("llama3");
  victim.files["tokenizer.json"] = ReadGolden("vocab/" + name + ".tokenizer.json.xz");
  victim.files["tokenizer_config.json"] =
      R"({"eos_token": "</s>", "chat_template": "{{ '<|im_start|>' }}", "add_bos_token": true})";
  victim.targets = {"tokenizer.json", "tokenizer.json", "tokenizer.json", "tokenizer_config.json"};
  return victim;
}

Victim OneFile(const std::string& name, std::string bytes) {
  return {.files = {{name, std::move(bytes)}}, .targets = {name}};
}

std::string NpyIds() {
  std::string header = "{'descr': '<i4', 'fortran_order': False, 'shape': (4, 16), }";
  header.resize(117, ' ');
  std::string bytes = std::string("\x93NUMPY\x01\x00v\x00", 10) + header + "\n";
  for (int32_t id = 0; id < 64; ++id) bytes.append(reinterpret_cast<const char*>(&id), sizeof(id));
  return bytes;
}

// An artifact as admission stores it, of a golden model in several schemes.
Victim Artifact(const std::string& scheme_name) {
  const TempDir folder;
  const std::string directory = folder.path() + "/artifact";
  const auto checkpoint = OpenCheckpoint(GoldenPath(kArtifactModel)).value();
  const ModelFamily* family = FamilyOf(*checkpoint).value();
  const ModelSpec spec = family->parse(*checkpoint).value();
  const QuantScheme* scheme = FindScheme(scheme_name).value();
  const auto writer = ArtifactWriter::Create(directory).value();
  for (const LinearSlot& slot : family->slots(spec)) {
    const Tensor weight = ReadSlotWeight(*checkpoint, slot).value();
    const QuantizedTensor tensor = scheme->Encode(weight.view()).value();
    Require(
        writer->Add(slot.name, tensor, {.scheme = scheme_name, .why = "as the recipe says"}).ok());
  }
  Require(writer->Commit("key", "source", "fuzz").ok());
  Victim victim;
  for (const char* name : {"manifest.json", "weights.bin"})
    victim.files[name] = ReadFile(directory + "/" + name).value();
  victim.targets = {"manifest.json", "manifest.json", "manifest.json", "weights.bin"};
  return victim;
}

// Checksums for what stands there now; leaves alone what has no sense any more.
void MakeChecksumsRight(Victim& victim) {
  json manifest = json::parse(victim.files["manifest.json"], nullptr, false);
  if (!manifest.is_object() || !manifest.value("slots", json()).is_object()) return;
  const std::string& weights = victim.files["weights.bin"];
  if (weights.size() != manifest.value("weights_bytes", json()))
    manifest["weights_bytes"] = weights.size();
  json covered = json::object();
  for (auto& [name, slot] : manifest["slots"].items()) {
    if (!slot.is_object() || !slot.value("tensors", json()).is_array()) return;
    json tensors = json::array();
    for (json& tensor : slot["tensors"]) {
      if (!tensor.is_object()) return;
      const json offset = tensor.value("offset", json()), bytes = tensor.value("bytes", json());
      if (offset.is_number_unsigned() && bytes.is_number_unsigned() &&
          offset.get<uint64_t>() <= weights.size() &&
          bytes.get<uint64_t>() <= weights.size() - offset.get<uint64_t>())
        tensor["sha256"] = Sha256Hex(
            std::string_view(weights).substr(offset.get<uint64_t>(), bytes.get<uint64_t>()));
      tensors.push_back({{"role", tensor["role"]},
                         {"dtype", tensor["dtype"]},
                         {"shape", tensor["shape"]},
                         {"sha256", tensor["sha256"]}});
    }
    covered[name] = {{"scheme", slot["scheme"]},     {"activation", slot["activation"]},
                     {"fallback", slot["fallback"]}, {"shape", slot["shape"]},
                     {"group", slot["group"]},       {"tensors", tensors}};
  }
  manifest["artifact_hash"] =
      Sha256Hex(covered.dump(-1, ' ', false, json::error_handler_t::replace));
  victim.files["manifest.json"] = manifest.dump(-1, ' ', false, json::error_handler_t::replace);
}

absl::Status RunOneStep(const Model& model) {
  const ModelSpec& spec = model.spec();
  const std::vector<int32_t> tokens = {1 % spec.vocab, 2 % spec.vocab, 3 % spec.vocab};
  const size_t length = std::min<size_t>(tokens.size(), static_cast<size_t>(spec.max_context));
  ModelRunner runner(model, 1, static_cast<int>(length));
  return runner
      .TryForward({{.tokens = {tokens.begin(), tokens.begin() + static_cast<ptrdiff_t>(length)},
                    .token_types = {}}})
      .status();
}

absl::Status UseTokenizer(const Checkpoint& checkpoint) {
  if (!HasTokenizer(checkpoint.tokenizer())) return absl::OkStatus();
  ASSIGN_OR_RETURN(const auto tokenizer, MakeTokenizer(checkpoint.tokenizer()));
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                   tokenizer->Encode("Hello, w\xc3\xb6rld <s> 12\n", true, true));
  for (const int32_t id : ids) Require(id >= 0 && id < tokenizer->vocab_size(), "a token's id");
  (void)tokenizer->ApplyChatTemplate(std::vector<ChatMessage>{{"user", "x"}});
  return tokenizer->Decode(ids, true).status();
}

absl::Status RunCheckpoint(const Checkpoint& checkpoint) {
  RETURN_IF_ERROR(UseTokenizer(checkpoint));
  ASSIGN_OR_RETURN(const auto model, BuildUniform(checkpoint, "f32", {}));
  return RunOneStep(*model);
}

absl::Status RunArtifact(const ArtifactReader& reader) {
  const auto checkpoint = OpenCheckpoint(GoldenPath(kArtifactModel)).value();
  const ModelFamily* family = FamilyOf(*checkpoint).value();
  const ModelSpec spec = family->parse(*checkpoint).value();
  LinearMap linears;
  for (const LinearSlot& slot : family->slots(spec)) {  // as LoadSlots of admission
    ASSIGN_OR_RETURN(const QuantizedTensor tensor, reader.Read(slot.name));
    if (!(tensor.shape == slot.shape)) return absl::DataLossError("stored shape: " + slot.name);
    const ActivationMode mode = reader.manifest().slots.find(slot.name)->second.plan.activation;
    ASSIGN_OR_RETURN(QuantizedLinear linear,
                     QuantizedLinear::Create(tensor, Tensor(), {.activation = mode}));
    linears[slot.name] = std::make_shared<const QuantizedLinear>(std::move(linear));
  }
  ASSIGN_OR_RETURN(const auto model, family->build(spec, *checkpoint, std::move(linears)));
  return RunOneStep(*model);
}

absl::Status ReadCalibration(const std::string& path) {
  std::vector<std::string> vocabulary = {"\n", " "};
  for (char c = 'a'; c <= 'z'; ++c) vocabulary.emplace_back(1, c);
  while (vocabulary.size() < 64) vocabulary.push_back(std::to_string(vocabulary.size()));
  const FakeTokenizer letters(vocabulary, {});
  ModelSpec spec;
  spec.vocab = 64;
  spec.max_context = 32;
  const auto set = LoadCalibrationSet(path, &letters, spec, {.samples = 3, .window = 16});
  if (set.ok()) Require(!set->samples.empty(), "windows");
  return set.status();
}

}  // namespace

const std::vector<std::string>& AllFormats() {
  static const auto& formats =
      *new std::vector<std::string>{"gguf", "safetensors", "tokenizer", "calibration", "artifact"};
  return formats;
}

std::vector<Victim> VictimsOf(const std::string& format) {
  if (format == "gguf")
    return {OneFile("m.gguf", ReadGolden("../../data/stories260k/stories260K-f32.gguf")),
            OneFile("m.gguf", ReadGolden("../../data/stories260k/stories260K-f32.gguf")),
            OneFile("m.gguf", ReadGolden("checkpoint/blocks.gguf.xz"))};  // every type; no model
  if (format == "safetensors")
    return {GoldenFolder("llama3"), GoldenFolder("qwen3"), GoldenFolder("bert_mean"),
            GoldenFolder("roberta_classifier"), Sharded(GoldenFolder("qwen2"))};
  if (format == "tokenizer")
    return {WithTokenizer("byte_level_bpe"), WithTokenizer("llama2_like"),
            WithTokenizer("wordpiece_cased"), WithTokenizer("unigram")};
  if (format == "calibration")
    return {OneFile("a.txt", "once upon a time there was a text\n"),
            OneFile("a.jsonl", "{\"text\": \"onceuponatime\"}\n{\"text\": \"therewasatext\"}\n"),
            OneFile("b.jsonl", "[1, 2, 3]\n{\"input_ids\": [4, 63]}\n"),
            OneFile("a.npy", NpyIds())};
  return {Artifact("int8_channel"), Artifact("int4_group"), Artifact("nf4"), Artifact("fp8_e4m3"),
          Artifact("int8_sparse")};
}

void Damage(const std::string& format, Victim& victim, Mutations& mutations) {
  const std::string& name = victim.targets[mutations.Draw(victim.targets.size())];
  victim.files[name] = mutations.Apply(name, std::move(victim.files[name]));
  if (format == "artifact" && mutations.Draw(2) == 0) MakeChecksumsRight(victim);
}

Outcome LoadAndRun(const std::string& format, const Victim& victim, const std::string& folder) {
  if (format == "calibration")
    return {.status = ReadCalibration(folder + "/" + victim.targets[0]), .opened = false};
  if (format == "artifact") {
    const auto reader = ArtifactReader::Open(folder);
    if (!reader.ok()) return {.status = reader.status(), .opened = false};
    return {.status = RunArtifact(**reader), .opened = true};
  }
  const auto checkpoint = OpenCheckpoint(folder);
  if (!checkpoint.ok()) return {.status = checkpoint.status(), .opened = false};
  return {.status = RunCheckpoint(**checkpoint), .opened = true};
}

}  // namespace assay
