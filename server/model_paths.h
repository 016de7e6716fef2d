// Which files of the host a client may name: checkpoints, calibration data and recipes that are
// admitted by RPC, and entries of the model repository. Confined, a path must lead below one of the
// roots, links followed, and so must every link inside a folder that it names, and every file that
// a recipe names. Who may write below a root may change what a path leads to after it was looked at
// (docs/adr/0017-*.md); roots are for the operator to write.
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
  // The same for an entry of the repository: PermissionDenied, with what to do, where links lead
  // out of the roots.
  absl::StatusOr<std::string> ResolveEntry(const std::string& path) const;
  // The same for a recipe's file, and for the files that it, or the recipes of its ladder, name:
  // relative ones are of the server's working directory, as they are where they are opened. Other
  // errors: the file is no recipe (FilesNamedIn).
  absl::StatusOr<std::string> ResolveRecipe(const std::string& path) const;

 private:
  const bool confined_;
  const std::vector<std::string> roots_;
};

}  // namespace assay
