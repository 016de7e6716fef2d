// assay: the command line of the server. A client, but for the subcommands that
// say that they need no server.
#include <cstdio>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
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
    "Environment: ASSAY_SERVER, ASSAY_ADMIN_SERVER, ASSAY_TOKEN_FILE (as the options), NO_COLOR.";

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

// "unknown command 'x'; the commands are ..." when the first word is none; else empty.
std::string UnknownCommand(const CLI::App& app) {
  if (!app.get_subcommands().empty()) return "";
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(command->get_name());
  }
  const std::string known = absl::StrCat("the commands are ", absl::StrJoin(names, ", "));
  for (const std::string& word : app.remaining()) {
    if (word.rfind("-", 0) == 0) return "";
    return absl::StrCat("unknown command '", word, "'; ", known);
  }
  return "";
}

// An answer that could not be written (a full disk) is a failure, whatever the command says.
int CloseOutput(int exit_code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return exit_code;
  std::fprintf(stderr, "assay: cannot write the output: is the disk full?\n");
  return exit_code == assay::kExitOk ? assay::kExitRefused : exit_code;
}

}  // namespace

int main(int argc, char** argv) {
  assay::CommandLine line;
  CLI::App app{kDescription, "assay"};
  app.footer(kFooter);
  app.require_subcommand(1);
  app.fallthrough();  // --server may follow the subcommand
  app.set_version_flag("--version", absl::StrCat("assay ", ASSAY_VERSION));
  CLI::Option* const server =
      app.add_option("--server", line.global.server, "Address of the server")
          ->envname("ASSAY_SERVER")
          ->type_name("HOST:PORT")
          ->check(assay::AddressProblem)
          ->capture_default_str();
  app.add_option("--admin-server", line.global.admin_server,
                 "Address for administration (admit, unload, canary, promote, rollback) [--server "
                 "where given, else 127.0.0.1:8003]")
      ->envname("ASSAY_ADMIN_SERVER")
      ->type_name("HOST:PORT")
      ->check(assay::AddressProblem);
  app.add_option("--token-file", line.global.token_file, "File with a bearer token")
      ->envname("ASSAY_TOKEN_FILE")
      ->type_name("FILE");
  app.add_option("--ca", line.global.ca, "PEM file: whose server certificates are trusted; TLS")
      ->type_name("FILE");
  app.add_option("--cert", line.global.cert, "PEM file of a certificate to show; TLS")
      ->type_name("FILE");
  app.add_option("--key", line.global.key, "PEM file of its private key")->type_name("FILE");
  app.add_option("--server-name", line.global.server_name,
                 "Name that the server's certificate has, where it is not the host of --server (a "
                 "forwarded port); with --ca")
      ->type_name("NAME");
  app.add_option("--timeout", line.global.timeout_seconds, "Give up after so many seconds")
      ->type_name("SECONDS")
      ->check([](const std::string& text) {
        double seconds = 0;
        const bool good = absl::SimpleAtod(text, &seconds) && seconds >= 0 && seconds <= 1e6;
        return good ? std::string() : absl::StrCat("'", text, "' is not a number of seconds");
      });
  for (const auto add :
       {assay::AddGenerate, assay::AddEmbed,    assay::AddStatus, assay::AddAdmit,
        assay::AddReport,   assay::AddDrift,    assay::AddEvents, assay::AddPolicy,
        assay::AddRecipes,  assay::AddAnalyze,  assay::AddPlan,   assay::AddVerify,
        assay::AddQuantize, assay::AddTokenize, assay::AddCanary, assay::AddPromote,
        assay::AddRollback, assay::AddUnload,   assay::AddHealth, assay::AddVersion}) {
    add(app, line);
  }
  MoveExamplesToFooter(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return CloseOutput(app.exit(e));  // --help, --version
    const std::string unknown = UnknownCommand(app);
    std::fprintf(stderr, "assay: %s (see assay --help)\n",
                 unknown.empty() ? e.what() : unknown.c_str());
    return assay::kExitRefused;
  }
  line.global.server_given = server->count() > 0;
  return CloseOutput(line.run());
}
