// tokenize, unload, health, version.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "proto/assay/v1/assay.grpc.pb.h"
#include "proto/health/v1/health.grpc.pb.h"
#include "proto/open_inference/grpc_service.grpc.pb.h"

namespace assay {
namespace {

struct TokenizeOptions {
  std::string model, text;
  std::vector<int32_t> decode;
  bool no_special = false, parse_special = false, json = false;
};

int Detokenize(const Client& client, assay::v1::AssayService::Stub& stub,
               const TokenizeOptions& options) {
  assay::v1::DetokenizeRequest request;
  request.set_model(options.model);
  request.mutable_ids()->Add(options.decode.begin(), options.decode.end());
  assay::v1::DetokenizeResponse response;
  const auto context = client.NewContext(10);
  const grpc::Status status = stub.Detokenize(context.get(), request, &response);
  if (!status.ok()) return client.Fail(status);
  std::puts(response.text().c_str());
  return kExitOk;
}

int Tokenize(const GlobalOptions& global, const TokenizeOptions& options) {
  const absl::StatusOr<Client> connected = Client::Connect(global);
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  if (!options.decode.empty()) return Detokenize(client, *stub, options);
  if (options.text.empty()) {
    return FailLocally(
        absl::InvalidArgumentError("no text: give it as an argument, or ids with "
                                   "--decode"));
  }
  if (const absl::Status valid = CheckUtf8(options.text); !valid.ok()) return FailLocally(valid);
  assay::v1::TokenizeRequest request;
  request.set_model(options.model);
  request.set_text(options.text);
  request.set_no_special(options.no_special);
  request.set_parse_special(options.parse_special);
  assay::v1::TokenizeResponse response;
  const auto context = client.NewContext(10);
  const grpc::Status status = stub->Tokenize(context.get(), request, &response);
  if (!status.ok()) return client.Fail(status);
  if (options.json) {
    const nlohmann::json ids(std::vector<int32_t>(response.ids().begin(), response.ids().end()));
    std::puts(ids.dump().c_str());
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows{{"ID", "TOKEN"}};
  for (int i = 0; i < response.ids_size(); ++i) {
    rows.push_back({absl::StrCat(response.ids(i)), absl::Utf8SafeCEscape(response.tokens(i))});
  }
  std::fputs(FormatTable(rows).c_str(), stdout);
  return kExitOk;
}

int Unload(const GlobalOptions& global, const std::string& model) {
  const absl::StatusOr<Client> connected = Client::Connect(global.ForAdmin());
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = inference::GRPCInferenceService::NewStub(client.channel());
  inference::RepositoryModelUnloadRequest request;
  request.set_model_name(model);
  inference::RepositoryModelUnloadResponse response;
  const auto context = client.NewContext(0);
  const grpc::Status status = stub->RepositoryModelUnload(context.get(), request, &response);
  return status.ok() ? kExitOk : client.Fail(status);
}

int Health(const GlobalOptions& global, const std::string& service) {
  const absl::StatusOr<Client> connected = Client::Connect(global);
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = grpc::health::v1::Health::NewStub(client.channel());
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const auto context = client.NewContext(5);
  const grpc::Status status = stub->Check(context.get(), request, &response);
  if (status.error_code() == grpc::StatusCode::NOT_FOUND) {
    return FailLocally(
        absl::NotFoundError(absl::StrCat("the server knows no model '", service, "'")));
  }
  if (!status.ok()) return client.Fail(status);
  std::puts(grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status()).c_str());
  return response.status() == grpc::health::v1::HealthCheckResponse::SERVING ? kExitOk
                                                                             : kExitServer;
}

}  // namespace

void AddTokenize(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = app.add_subcommand("tokenize",
                                         "Tokens of a text, or the text of tokens\n\nExamples:\n"
                                         "  assay tokenize smollm2 \"Hello, world\"\n"
                                         "  assay tokenize smollm2 --decode 19556 28 905");
  command->add_option("model", options->model, "Name of the model")->required();
  command->add_option("text", options->text, "The text");
  command->add_option("--decode", options->decode, "Token ids to turn into text")->excludes("text");
  command->add_flag("--no-special", options->no_special, "Leave out BOS, EOS, [CLS], [SEP]");
  command->add_flag("--parse-special", options->parse_special,
                    "Special tokens written in the text count");
  command->add_flag("--json", options->json, "The ids only, as a JSON array");
  command->callback([&line, options] {
    line.run = [&line, options] { return Tokenize(line.global, *options); };
  });
}

void AddUnload(CLI::App& app, CommandLine& line) {
  auto model = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("unload", "Finish the requests of a model, then free its memory");
  command->add_option("model", *model, "Name of the model")->required();
  command->callback(
      [&line, model] { line.run = [&line, model] { return Unload(line.global, *model); }; });
}

void AddHealth(CLI::App& app, CommandLine& line) {
  auto service = std::make_shared<std::string>();
  CLI::App* command =
      app.add_subcommand("health",
                         "SERVING or NOT_SERVING (exit code 2)\n\nExamples:\n"
                         "  assay health           the process lives and does not drain\n"
                         "  assay health ready     every required model serves\n"
                         "  assay health smollm2   this model serves");
  command->add_option("service", *service, "Nothing, 'ready', or the name of a model");
  command->callback(
      [&line, service] { line.run = [&line, service] { return Health(line.global, *service); }; });
}

void AddVersion(CLI::App& app, CommandLine& line) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("version", "Version of this program");
  command->add_flag("--json", *json, "As JSON");
  command->callback([&line, json] {
    line.run = [json] {
      *json ? std::printf("{\"version\":\"%s\"}\n", ASSAY_VERSION)
            : std::printf("assay %s\n", ASSAY_VERSION);
      return kExitOk;
    };
  });
}

}  // namespace assay
