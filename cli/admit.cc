#include <climits>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "engine/lifecycle/progress_display.h"
#include "proto/assay/v1/assay.grpc.pb.h"

namespace assay {
namespace {

struct AdmitOptions {
  std::string path, name, scheme, recipe, calibration, canary;
  int64_t version = 0;
  bool dry_run = false;
};

// The server has another working folder.
std::string AbsolutePath(const std::string& path) {
  char resolved[PATH_MAX];
  return realpath(path.c_str(), resolved) != nullptr ? resolved : path;
}

int RunAdmit(const GlobalOptions& global, const AdmitOptions& options) {
  const absl::StatusOr<Client> connected = Client::Connect(global.ForAdmin());
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  assay::v1::AdmitRequest request;
  request.set_path(AbsolutePath(options.path));
  request.set_name(options.name);
  request.set_version(options.version);
  request.set_scheme(options.scheme);
  const bool file = options.recipe.find('/') != std::string::npos ||
                    options.recipe.find(".yaml") != std::string::npos;
  request.set_recipe(file ? AbsolutePath(options.recipe) : options.recipe);
  if (!options.calibration.empty()) request.set_calibration(AbsolutePath(options.calibration));
  request.set_dry_run(options.dry_run);
  if (!options.canary.empty()) {
    const absl::StatusOr<double> share = ParseShare(options.canary);
    if (!share.ok()) return FailLocally(share.status());
    if (*share == 0) {
      return FailLocally(absl::InvalidArgumentError(
          absl::StrCat("a canary is admitted with a share above 0: --canary ", options.canary)));
    }
    request.set_canary_share(*share);
  }
  const auto context = client.NewContext(0);
  const auto stream = stub->Admit(context.get(), request);
  ProgressDisplay display(stderr);
  assay::v1::AdmitProgress progress;
  while (stream->Read(&progress)) {
    if (!progress.done()) {
      display.Show({absl::StrCat(progress.name(), ":", progress.version()), progress.stage(),
                    progress.fraction(), progress.message()},
                   absl::Now());
    }
  }
  display.Clear();
  const grpc::Status status = stream->Finish();
  std::fputs(progress.report_text().c_str(), stdout);
  if (status.ok()) return kExitOk;
  const int code = client.Fail(status);
  return progress.verdict() == "rejected" ? kExitRejected : code;
}

}  // namespace

void AddAdmit(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<AdmitOptions>();
  CLI::App* command = app.add_subcommand(
      "admit",
      "Quantize, prove and serve a checkpoint on the server's host\n\nExamples:\n"
      "  assay admit ~/checkpoints/smollm2.gguf\n"
      "  assay admit ./my-model --name mine --scheme bf16\n"
      "  assay admit ./my-model --recipe w8a8_dynamic\n"
      "  assay admit ./my-model --recipe w4a16_awq --calibration chats.jsonl\n"
      "  assay admit ./my-model --name smollm2 --canary 10%\n"
      "  assay admit ./my-model --dry-run || echo \"would not serve: $?\"\n\n"
      "Exit code 3: the accuracy gate rejected it; the report says which layer and why.");
  command->add_option("path", options->path, "GGUF file, safetensors file, or folder")->required();
  command->add_option("--name", options->name, "Name to serve it under [last part of the path]");
  command->add_option("--model-version", options->version, "Version [one more than the newest]");
  command->add_option("--scheme", options->scheme,
                      "One scheme for every layer instead of the policy's recipe, e.g. bf16");
  command
      ->add_option("--recipe", options->recipe,
                   "Recipe instead of the policy's: built-in (assay recipes) or a YAML file")
      ->excludes("--scheme");
  command
      ->add_option("--calibration", options->calibration,
                   "Text, JSONL, token ids or .npy, on the server's host [the recipe's, else the "
                   "server's]")
      ->type_name("FILE");
  command
      ->add_option("--canary", options->canary,
                   "Serve it beside the stable version, with this share of the requests [replace "
                   "the stable version]")
      ->type_name("SHARE");
  command->add_flag("--dry-run", options->dry_run, "Verify and report, do not serve");
  command->callback([&line, options] {
    line.run = [&line, options] { return RunAdmit(line.global, *options); };
  });
}

}  // namespace assay
