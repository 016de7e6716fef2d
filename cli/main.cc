// assay: the command line of the server. Every subcommand but `policy` and `version` is a client.
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "cli/commands.h"

namespace {

constexpr const char* kDescription =
    "assay: talk to an assay-server\n\nExamples:\n"
    "  assay generate smollm2 \"Why is the sky blue?\"\n"
    "  assay embed minilm \"a sentence\" \"another one\"\n"
    "  assay admit ~/checkpoints/my-model --name mine\n"
    "  assay report smollm2 | less";
constexpr const char* kFooter =
    "Exit codes: 0 done; 1 bad usage, or the request was refused; 2 the server cannot be reached\n"
    "or failed; 3 the accuracy gate rejected an admission.\n"
    "Environment: ASSAY_SERVER (as --server), NO_COLOR.";

// A command's own help ends with its examples; the overview shows its first line only.
void MoveExamplesToFooter(CLI::App& app) {
  for (CLI::App* command : app.get_subcommands([](CLI::App*) { return true; })) {
    const std::string description = command->get_description();
    const size_t end = description.find("\n\n");
    if (end != std::string::npos) {
      command->description(description.substr(0, end));
      command->footer(description.substr(end + 2));
    }
    MoveExamplesToFooter(*command);
  }
}

}  // namespace

int main(int argc, char** argv) {
  assay::CommandLine line;
  CLI::App app{kDescription, "assay"};
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();  // --server may follow the subcommand
  app.set_version_flag("--version", absl::StrCat("assay ", ASSAY_VERSION));
  app.add_option("--server", line.global.server, "Address of the server")
      ->envname("ASSAY_SERVER")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app.add_option("--timeout", line.global.timeout_seconds, "Give up after so many seconds")
      ->check(CLI::NonNegativeNumber)
      ->type_name("SECONDS");
  for (const auto add : {assay::AddGenerate, assay::AddEmbed, assay::AddStatus, assay::AddAdmit,
                         assay::AddReport, assay::AddPolicy, assay::AddTokenize, assay::AddUnload,
                         assay::AddHealth, assay::AddVersion}) {
    add(app, line);
  }
  MoveExamplesToFooter(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // --help, --version
    std::fprintf(stderr, "assay: %s (see assay --help)\n", e.what());
    return assay::kExitRefused;
  }
  return line.run();
}
