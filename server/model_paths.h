// Which files of the host a client may name: checkpoints, calibration data and recipes that are
// admitted by RPC. Confined, a path must lead below one of the roots, links followed, and so must
// every link inside a folder that it names. Who may write below a root may change what a path leads
// to after it was looked at; roots are for the operator to write.
//
// Thread rule: any thread.
#pragma once
#include <string>
#include <vector>

#include "base/status.h"
#include "server/config.h"

namespace assay {

class ModelPaths {
 public:
  explicit ModelPaths(const ServerConfig& config);
  ModelPaths(bool confined, std::vector<std::string> roots)
      : confined_(confined), roots_(std::move(roots)) {}

  // The path to open: with all links followed where paths are confined, else as it was given. A
  // relative path is one below a root. PermissionDenied, always in the same words, whatever is
  // there: outside of the roots, or nothing; `..` and percent-encoding are not even tried.
  absl::StatusOr<std::string> Resolve(const std::string& path) const;

 private:
  const bool confined_;
  const std::vector<std::string> roots_;
};

}  // namespace assay
