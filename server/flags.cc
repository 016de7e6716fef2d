#include "server/flags.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr const char* kDescription =
    "assay-server: quantizes models when they are admitted, proves them against the f32 reference, "
    "serves them over gRPC\n\nExamples:\n"
    "  assay-server --model-repository ~/models\n"
    "  assay-server --config deploy/example.yaml --grpc-port 9001\n"
    "  ASSAY_LOG_FORMAT=json assay-server --config /etc/assay.yaml\n\n"
    "Every option can also be set in the YAML file (its key: dots and underscores where the flag "
    "has dashes) and in the environment; a flag wins over the environment, the environment over "
    "the file.";

// Names the first argument that is none of ours, and what was probably meant.
std::string Unexpected(const CLI::App& app) {
  const std::vector<std::string> rest = app.remaining();
  std::vector<std::string> known{"--config", "--check-config", "--help", "--version"};
  for (const ConfigOption& option : AllConfigOptions()) known.push_back(option.flag());
  for (const std::string& argument : rest) {
    if (argument.rfind("-", 0) != 0) continue;
    const std::string flag = argument.substr(0, argument.find('='));
    return absl::StrCat("unknown flag ", flag, DidYouMean(flag, known));
  }
  return absl::StrCat("unexpected argument '", rest.empty() ? "" : rest.front(), "'");
}

}  // namespace

Flags ParseFlags(int argc, char** argv) {
  Flags out;
  out.sources.environment = [](const char* name) -> const char* { return std::getenv(name); };
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    out.sources.environment_names.emplace_back(text.substr(0, text.find('=')));
  }
  CLI::App app{kDescription, "assay-server"};
  app.get_formatter()->column_width(36);
  app.set_version_flag("--version", absl::StrCat("assay-server ", ASSAY_VERSION));
  app.add_option("--config", out.sources.yaml_path, "YAML file (deploy/example.yaml explains it)")
      ->envname("ASSAY_CONFIG")
      ->type_name("FILE")
      ->take_last();
  app.add_flag("--check-config", out.check_config,
               "Validate, print the effective configuration with the origin of each value, stop");
  for (const ConfigOption& option : AllConfigOptions()) {
    const size_t dot = option.key.find('.');
    app.add_option_function<std::string>(
           option.flag(),
           [&out, key = option.key](const std::string& text) { out.sources.flags[key] = text; },
           absl::StrCat(option.help, " [", option.show(ServerConfig()), "] (", option.environment(),
                        ")"))
        ->type_name("")
        ->take_last()
        ->group(dot == std::string::npos ? "Options" : option.key.substr(0, dot));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ExtrasError&) {
    std::fprintf(stderr, "assay-server: %s (see --help)\n", Unexpected(app).c_str());
    out.exit_code = 1;
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) {  // --help, --version
      app.exit(e);
      out.exit_code = 0;
    } else {
      std::fprintf(stderr, "assay-server: %s (see --help)\n", e.what());
      out.exit_code = 1;
    }
  }
  return out;
}

}  // namespace assay
