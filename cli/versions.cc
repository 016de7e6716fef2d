// `assay canary`, `assay promote` and `assay rollback`: versions of a model side by side.
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "cli/commands.h"
#include "proto/assay/v1/assay.grpc.pb.h"

namespace assay {
namespace {

using Stub = assay::v1::AssayService::Stub;

// "smollm2: version 3 stable, version 4 canary (25 %), version 2 kept until ...".
int PrintLabels(const Client& client, const grpc::Status& status,
                const assay::v1::ModelLabels& labels) {
  if (!status.ok()) return client.Fail(status);
  std::string line = absl::StrCat(labels.model(), ": version ", labels.stable(), " stable");
  if (labels.canary() != 0) {
    absl::StrAppendFormat(&line, ", version %d canary (%.4g %%)", labels.canary(),
                          100 * labels.canary_share());
  }
  if (labels.previous() != 0) {
    absl::StrAppend(&line, ", version ", labels.previous(), " kept for a rollback until ",
                    labels.previous_until());
  }
  std::puts(line.c_str());
  return kExitOk;
}

// Calls `method` with a request that names the model.
template <typename Request>
int Move(const GlobalOptions& global, Request request,
         grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                      assay::v1::ModelLabels*)) {
  const absl::StatusOr<Client> connected = Client::Connect(global.ForAdmin());
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  assay::v1::ModelLabels labels;
  const auto context = client.NewContext(10);
  return PrintLabels(client, ((*stub).*method)(context.get(), request, &labels), labels);
}

struct CanaryOptions {
  std::string model, share;
  bool drop = false;
};

int RunCanary(const GlobalOptions& global, const CanaryOptions& options) {
  if (options.drop) {
    assay::v1::DropCanaryRequest request;
    request.set_model(options.model);
    return Move(global, request, &Stub::DropCanary);
  }
  if (options.share.empty()) {
    return FailLocally(
        absl::InvalidArgumentError("no share: give one, such as 25%, or --drop to end the canary"));
  }
  const absl::StatusOr<double> share = ParseShare(options.share);
  if (!share.ok()) return FailLocally(share.status());
  assay::v1::SetCanaryShareRequest request;
  request.set_model(options.model);
  request.set_share(*share);
  return Move(global, request, &Stub::SetCanaryShare);
}

}  // namespace

absl::StatusOr<double> ParseShare(const std::string& text) {
  absl::string_view number = text;
  const bool percent = absl::ConsumeSuffix(&number, "%");
  double value = 0;
  const bool good = absl::SimpleAtod(number, &value) && value >= 0 && value <= (percent ? 100 : 1);
  if (good) return percent ? value / 100 : value;
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is not a share: expected 0 to 1, or 0% to 100%"));
}

void AddCanary(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<CanaryOptions>();
  CLI::App* command =
      app.add_subcommand("canary",
                         "How much of a model's traffic its canary version gets\n\nExamples:\n"
                         "  assay admit ./my-model --name smollm2 --canary 10%\n"
                         "  assay canary smollm2 25%\n"
                         "  assay canary smollm2 0%       it stays loaded, without traffic\n"
                         "  assay canary smollm2 --drop   it finishes what it has and is freed");
  command->add_option("model", options->model, "Name of the model")->required();
  CLI::Option* share = command->add_option("share", options->share, "0 to 1, or 0% to 100%");
  command->add_flag("--drop", options->drop, "End the canary")->excludes(share);
  command->callback([&line, options] {
    line.run = [&line, options] { return RunCanary(line.global, *options); };
  });
}

void AddPromote(CLI::App& app, CommandLine& line) {
  auto model = std::make_shared<std::string>();
  auto force = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "promote",
      "Make a model's canary its stable version, when live traffic speaks for it\n\nExamples:\n"
      "  assay promote smollm2\n  assay promote smollm2 --force");
  command->add_option("model", *model, "Name of the model")->required();
  command->add_flag("--force", *force, "Whatever live traffic says, or has not said yet");
  command->callback([&line, model, force] {
    line.run = [&line, model, force] {
      assay::v1::PromoteRequest request;
      request.set_model(*model);
      request.set_force(*force);
      return Move(line.global, request, &Stub::Promote);
    };
  });
}

void AddRollback(CLI::App& app, CommandLine& line) {
  auto model = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand(
      "rollback",
      "Serve a model's previous version again, at once; again undoes it\n\nExamples:\n"
      "  assay rollback smollm2");
  command->add_option("model", *model, "Name of the model")->required();
  command->callback([&line, model] {
    line.run = [&line, model] {
      assay::v1::RollBackRequest request;
      request.set_model(*model);
      return Move(line.global, request, &Stub::RollBack);
    };
  });
}

}  // namespace assay
