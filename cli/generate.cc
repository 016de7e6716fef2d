#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "proto/assay/v1/assay.grpc.pb.h"

namespace assay {
namespace {

struct GenerateOptions {
  std::string model, prompt, system;
  int64_t version = 0;
  bool chat = false, raw = false, json = false, stats = false, ignore_eos = false;
  int max_tokens = 256, top_k = 0;
  float temperature = 0, top_p = 1, min_p = 0, repetition_penalty = 1;
  uint64_t seed = 0;
  std::vector<std::string> stop;
};

// Whether the model talks: an instruct model continues a chat, a base model the text.
bool TalksByDefault(assay::v1::AssayService::Stub& stub, const Client& client,
                    const GenerateOptions& options) {
  assay::v1::ListModelsResponse models;
  const auto context = client.NewContext(10);
  if (!stub.ListModels(context.get(), {}, &models).ok()) return false;
  for (const auto& model : models.models()) {
    if (model.name() == options.model && model.has_chat_template()) return true;
  }
  return false;
}

assay::v1::GenerateRequest BuildRequest(const GenerateOptions& options, bool chat) {
  assay::v1::GenerateRequest request;
  request.set_model(options.model);
  request.set_version(options.version);
  if (chat) {
    if (!options.system.empty()) {
      auto& message = *request.mutable_chat()->add_messages();
      message.set_role("system");
      message.set_content(options.system);
    }
    auto& message = *request.mutable_chat()->add_messages();
    message.set_role("user");
    message.set_content(options.prompt);
  } else {
    request.set_prompt(options.prompt);
  }
  assay::v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_max_tokens(options.max_tokens);
  sampling.set_temperature(options.temperature);
  sampling.set_top_k(options.top_k);
  sampling.set_top_p(options.top_p);
  sampling.set_min_p(options.min_p);
  sampling.set_repetition_penalty(options.repetition_penalty);
  sampling.set_seed(options.seed);
  sampling.set_ignore_eos(options.ignore_eos);
  for (const std::string& stop : options.stop) sampling.add_stop(stop);
  return request;
}

void PrintStats(const assay::v1::GenerateResponse& last) {
  const assay::v1::Usage& usage = last.usage();
  const double decoding = usage.total_seconds() - usage.time_to_first_token_seconds();
  const double rate = decoding > 0 ? (usage.generated_tokens() - 1) / decoding : 0;
  std::fprintf(stderr,
               "%s:%lld  %d prompt tokens (%d cached), %d generated, %s; first after %.0f ms, "
               "%.1f tokens/s\n",
               last.model().c_str(), static_cast<long long>(last.version()), usage.prompt_tokens(),
               usage.cached_tokens(), usage.generated_tokens(), last.finish_reason().c_str(),
               1000 * usage.time_to_first_token_seconds(), rate);
}

void PrintGenerateJson(const std::string& text, const assay::v1::GenerateResponse& last) {
  const nlohmann::ordered_json json{{"model", last.model()},
                                    {"version", last.version()},
                                    {"text", text},
                                    {"finish_reason", last.finish_reason()},
                                    {"prompt_tokens", last.usage().prompt_tokens()},
                                    {"generated_tokens", last.usage().generated_tokens()}};
  std::puts(json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

int RunGenerate(const GlobalOptions& global, GenerateOptions options) {
  if (options.prompt == "-" || (options.prompt.empty() && isatty(STDIN_FILENO) == 0)) {
    options.prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  }
  if (options.prompt.empty()) {
    return FailLocally(absl::InvalidArgumentError("no prompt: give it as an argument or on stdin"));
  }
  for (const std::string& text : {options.prompt, options.system}) {
    if (const absl::Status valid = CheckUtf8(text); !valid.ok()) return FailLocally(valid);
  }
  const absl::StatusOr<Client> connected = Client::Connect(global);
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  const bool chat = options.chat || !options.system.empty() ||
                    (!options.raw && TalksByDefault(*stub, client, options));
  const auto context = client.NewContext(0);
  const auto stream = stub->Generate(context.get(), BuildRequest(options, chat));
  assay::v1::GenerateResponse message;
  std::string text;
  while (stream->Read(&message)) {
    if (options.json) {
      text += message.text();
    } else {
      std::fwrite(message.text().data(), 1, message.text().size(), stdout);
      std::fflush(stdout);
    }
  }
  const grpc::Status status = stream->Finish();
  if (!options.json && (status.ok() || message.ByteSizeLong() > 0)) std::puts("");
  if (!status.ok()) return client.Fail(status);
  if (options.json) PrintGenerateJson(text, message);
  if (options.stats) PrintStats(message);
  return kExitOk;
}

}  // namespace

void AddGenerate(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand(
      "generate",
      "Generate text; tokens appear as they come\n\nExamples:\n"
      "  assay generate smollm2 \"Why is the sky blue?\" --stats\n"
      "  assay generate stories260k --raw \"Once upon a time\" --temperature 0.8\n"
      "  git diff | assay generate smollm2 --system \"Summarize this change.\"");
  command->add_option("model", options->model, "Name of the model")->required();
  command->add_option("prompt", options->prompt, "The prompt; '-' or nothing reads stdin");
  command->add_option("--model-version", options->version, "Version [the newest that serves]");
  command->add_flag("--chat", options->chat, "Through the chat template [where the model has one]");
  command->add_flag("--raw", options->raw, "The prompt as it is")->excludes("--chat");
  command->add_option("--system", options->system, "System message; implies --chat")
      ->excludes("--raw");
  command->add_option("--max-tokens", options->max_tokens, "Most tokens to generate")
      ->capture_default_str();
  command->add_option("--temperature", options->temperature, "0 is greedy")->capture_default_str();
  command->add_option("--top-k", options->top_k, "0 is off")->capture_default_str();
  command->add_option("--top-p", options->top_p, "1 is off")->capture_default_str();
  command->add_option("--min-p", options->min_p, "0 is off")->capture_default_str();
  command->add_option("--repetition-penalty", options->repetition_penalty, "1 is off")
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Of the sampling")->capture_default_str();
  command->add_option("--stop", options->stop, "End before this text (may be repeated)")
      ->allow_extra_args(false)  // what follows it is the prompt
      ->allow_extra_args(false);
  command->add_flag("--ignore-eos", options->ignore_eos, "Go on after the model's end token");
  command->add_flag("--stats", options->stats, "Token counts and rates on stderr");
  command->add_flag("--json", options->json, "One JSON object at the end instead of a stream");
  command->callback([&line, options] {
    line.run = [&line, options] { return RunGenerate(line.global, *options); };
  });
}

}  // namespace assay
