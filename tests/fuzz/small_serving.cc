#include "tests/fuzz/small_serving.h"

#include <nlohmann/json.hpp>

#include "base/log.h"
#include "tests/fuzz/require.h"
#include "tests/support/fake_model.h"

namespace assay {
namespace {

using nlohmann::json;

constexpr int kContext = 40;

// GPT-2's letters for bytes: printable ones are themselves, the others follow at U+0100.
json ByteVocabulary() {
  json vocabulary = json::object();
  int others = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    const int letter = printable ? byte : 0x100 + others++;
    const std::string text = letter < 0x80 ? std::string(1, static_cast<char>(letter))
                                           : std::string{static_cast<char>(0xc0 | letter >> 6),
                                                         static_cast<char>(0x80 | (letter & 0x3f))};
    vocabulary[text] = byte;
  }
  return vocabulary;
}

std::shared_ptr<const Tokenizer> ByteTokenizer() {
  const json spec = {
      {"format", "huggingface"},
      {"config", {{"eos_token", "</s>"}, {"bos_token", "<s>"}, {"chat_template", "<|im_start|>"}}},
      {"tokenizer",
       {{"added_tokens",
         {{{"id", 256}, {"content", "<s>"}, {"special", true}},
          {{"id", 257}, {"content", "</s>"}, {"special", true}}}},
        {"model", {{"type", "BPE"}, {"vocab", ByteVocabulary()}, {"merges", json::array()}}},
        {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
        {"decoder", {{"type", "ByteLevel"}}}}}};
  auto tokenizer = MakeTokenizer(spec);
  if (!tokenizer.ok()) std::fprintf(stderr, "%s\n", tokenizer.status().ToString().c_str());
  Require(tokenizer.ok(), "the fuzzer's own tokenizer");
  return *std::move(tokenizer);
}

ServerConfig Configuration() {
  ServerConfig config{.admin = AdminAccess::kOn};
  config.model_roots = {"/nonexistent"};
  config.versions.rollback_window = absl::ZeroDuration();
  return config;
}

}  // namespace

SmallServing::SmallServing() : serving_(Configuration()) {
  Serve("text", ModelTask::kGenerate);
  Serve("embed", ModelTask::kEmbed);
  Serve("classify", ModelTask::kClassify);
}

void SmallServing::Serve(const std::string& name, ModelTask task) {
  static const auto& tokenizer = *new std::shared_ptr(ByteTokenizer());
  const auto model = std::make_shared<FakeModel>(FakeModel::Options{
      .vocab = tokenizer->vocab_size(), .max_context = kContext, .task = task, .before_step = {}});
  const EngineOptions options{.max_sequences = 8, .max_step_tokens = 64, .kv_bytes = 1 << 20};
  auto servable = std::make_shared<Servable>();
  servable->name = name;
  servable->version = 2;  // over the fake's own
  servable->spec = model->spec();
  servable->spec.labels = {"a", "b", "c", "d"};
  servable->tokenizer = tokenizer;
  servable->metrics = serving_.metrics().ForModel(name, 2);
  servable->report.verdict = "admitted";
  const EngineHost host{pool_, RealClock(), servable->metrics};
  if (task == ModelTask::kGenerate) {
    auto engine = GenerateEngine::Start(model, tokenizer, options, host);
    Require(engine.ok(), "the fuzzer's own engine");
    servable->generate = *std::move(engine);
  } else {
    auto engine = EncodeEngine::Start(model, options, host);
    Require(engine.ok(), "the fuzzer's own engine");
    servable->encode = *std::move(engine);
  }
  serving_.registry().SetState(name, 2, VersionState::kQueued, "", "");
  serving_.registry().Publish(std::move(servable));
}

SmallServing& TheServing() {
  static auto& serving = *[] {
    ConfigureLog(LogLevel::kError, LogFormat::kText);
    return new SmallServing;
  }();
  return serving;
}

}  // namespace assay
