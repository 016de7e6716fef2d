// The command line of assay-server: one flag per configuration option, and a few of its own.
#pragma once
#include <optional>

#include "server/config.h"

namespace assay {

struct Flags {
  ConfigSources sources;
  bool check_config = false;
  std::optional<int> exit_code;  // set when all is said: --help, --version (0), a bad flag (1)
};
Flags ParseFlags(int argc, char** argv);

}  // namespace assay
