#include <cmath>
#include <cstdio>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "proto/assay/v1/assay.grpc.pb.h"

namespace assay {
namespace {

struct EmbedOptions {
  std::string model;
  std::vector<std::string> texts;
  int64_t version = 0;
  bool json = false, truncate = false;
};

double Dot(const assay::v1::Embedding& a, const assay::v1::Embedding& b) {
  double sum = 0;
  for (int i = 0; i < a.values_size() && i < b.values_size(); ++i) {
    sum += static_cast<double>(a.values(i)) * b.values(i);
  }
  return sum;
}

void PrintEmbedJson(const EmbedOptions& options, const assay::v1::EmbedResponse& response) {
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (int i = 0; i < response.embeddings_size(); ++i) {
    const assay::v1::Embedding& e = response.embeddings(i);
    nlohmann::ordered_json row{
        {"text", options.texts[i]},
        {"tokens", e.tokens()},
        {"values", std::vector<float>(e.values().begin(), e.values().end())}};
    if (!e.label().empty()) row["label"] = e.label();
    out.push_back(std::move(row));
  }
  std::puts(out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void PrintSummary(const EmbedOptions& options, const assay::v1::EmbedResponse& response) {
  const assay::v1::Embedding& first = response.embeddings(0);
  std::vector<std::vector<std::string>> rows{{"#", "tokens", "size", "norm", "values",
                                              first.label().empty() ? "cosine to #1" : "label",
                                              "text"}};
  for (int i = 0; i < response.embeddings_size(); ++i) {
    const assay::v1::Embedding& e = response.embeddings(i);
    std::string values;
    for (int k = 0; k < std::min(4, e.values_size()); ++k) {
      absl::StrAppend(&values, absl::StrFormat("%+.4f ", e.values(k)));
    }
    const double norm = std::sqrt(Dot(e, e)), scale = norm * std::sqrt(Dot(first, first));
    rows.push_back({absl::StrCat(i + 1), absl::StrCat(e.tokens()), absl::StrCat(e.values_size()),
                    absl::StrFormat("%.4f", norm), values + "...",
                    !e.label().empty()
                        ? e.label()
                        : absl::StrFormat("%.4f", scale > 0 ? Dot(first, e) / scale : 0),
                    options.texts[i].substr(0, 60)});
  }
  std::fputs(FormatTable(rows).c_str(), stdout);
}

int RunEmbed(const GlobalOptions& global, EmbedOptions options) {
  if (options.texts.empty()) {
    for (std::string text; std::getline(std::cin, text);) options.texts.push_back(text);
  }
  if (options.texts.empty()) {
    return FailLocally(
        absl::InvalidArgumentError("no text: give it as arguments, or lines on stdin"));
  }
  for (const std::string& text : options.texts) {
    if (const absl::Status valid = CheckUtf8(text); !valid.ok()) return FailLocally(valid);
  }
  const absl::StatusOr<Client> connected = Client::Connect(global);
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  assay::v1::EmbedRequest request;
  request.set_model(options.model);
  request.set_version(options.version);
  request.set_truncate(options.truncate);
  for (const std::string& text : options.texts) request.add_texts(text);
  assay::v1::EmbedResponse response;
  const auto context = client.NewContext(60);
  const grpc::Status status = stub->Embed(context.get(), request, &response);
  if (!status.ok()) return client.Fail(status);
  options.json ? PrintEmbedJson(options, response) : PrintSummary(options, response);
  return kExitOk;
}

}  // namespace

void AddEmbed(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<EmbedOptions>();
  CLI::App* command =
      app.add_subcommand("embed",
                         "Embeddings of texts, or the labels of a classifier\n\nExamples:\n"
                         "  assay embed minilm \"a cat\" \"a kitten\" \"a bridge\"\n"
                         "  assay embed minilm --json < sentences.txt > embeddings.json");
  command->add_option("model", options->model, "Name of the model")->required();
  command->add_option("text", options->texts, "Texts; none reads lines from stdin");
  command->add_option("--model-version", options->version, "Version [the newest that serves]");
  command->add_flag("--truncate", options->truncate, "Cut what is longer than the model's context");
  command->add_flag("--json", options->json, "All values, as a JSON array");
  command->callback([&line, options] {
    line.run = [&line, options] { return RunEmbed(line.global, *options); };
  });
}

}  // namespace assay
