#include "server/model_paths.h"

#include <algorithm>
#include <filesystem>
#include <optional>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "quant/policy/recipe_list.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

constexpr int kMostEntries = 10000;  // of a folder; a checkpoint has dozens

std::vector<std::string> RootsOf(const ServerConfig& config) {
  std::vector<std::string> roots = config.model_roots;
  if (!config.model_repository.empty()) roots.insert(roots.begin(), config.model_repository);
  return roots;
}

bool IsHex(char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); }

// What no path of ours has: these are tried to get around checks.
bool IsCrooked(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) return true;
  for (size_t at = path.find('%'); at != std::string::npos; at = path.find('%', at + 1))
    if (at + 2 < path.size() && IsHex(path[at + 1]) && IsHex(path[at + 2])) return true;
  const fs::path parts(path);
  return std::any_of(parts.begin(), parts.end(), [](const fs::path& part) { return part == ".."; });
}

bool IsBelow(const fs::path& path, const fs::path& root) {
  const auto [end, unused] = std::mismatch(root.begin(), root.end(), path.begin(), path.end());
  return end == root.end();
}

// All links followed; nothing: it is not there, or cannot be read.
std::optional<fs::path> Canonical(const fs::path& path) {
  std::error_code error;
  const fs::path found = fs::canonical(path, error);
  return error ? std::nullopt : std::optional(found);
}

// Whether the links inside a folder stay below `root`.
bool LinksStay(const fs::path& folder, const fs::path& root) {
  std::error_code error;
  fs::recursive_directory_iterator it(folder, error);
  for (int entries = 0; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    if (++entries > kMostEntries) return false;
    if (!it->is_symlink(error)) continue;
    const std::optional<fs::path> target = Canonical(it->path());
    if (!target || !IsBelow(*target, root)) return false;
  }
  return !error;
}

std::optional<std::string> ResolveBelow(const std::string& root_name, const std::string& path) {
  const std::optional<fs::path> root = Canonical(root_name);
  if (!root) return std::nullopt;
  const std::optional<fs::path> found = Canonical(*root / path);  // an absolute one is itself
  if (!found || !IsBelow(*found, *root)) return std::nullopt;
  std::error_code error;
  const bool good = fs::is_directory(*found, error) ? LinksStay(*found, *root)
                                                    : fs::is_regular_file(*found, error);
  return good ? std::optional(found->string()) : std::nullopt;
}

}  // namespace

ModelPaths::ModelPaths(const ServerConfig& config)
    : ModelPaths(config.paths_are_confined(), RootsOf(config)) {}

absl::StatusOr<std::string> ModelPaths::Resolve(const std::string& path) const {
  if (!confined_) return path;
  if (!IsCrooked(path)) {
    for (const std::string& root : roots_) {
      if (const std::optional<std::string> found = ResolveBelow(root, path)) return *found;
    }
  }
  return absl::PermissionDeniedError(
      absl::StrCat("no file or folder below model_repository or model_roots, the only ones that "
                   "may be named here: '",
                   path.substr(0, 256), "'"));
}

absl::StatusOr<std::string> ModelPaths::ResolveEntry(const std::string& path) const {
  if (!confined_) return path;
  std::error_code error;
  const std::string whole = fs::absolute(path, error).string();
  for (const std::string& root : roots_) {
    if (const std::optional<std::string> found = ResolveBelow(root, whole)) return *found;
  }
  return absl::PermissionDeniedError(absl::StrCat(
      "a link leads out of model_repository and of model_roots; name where it leads in "
      "model_roots to allow it: path=",
      path));
}

absl::StatusOr<std::string> ModelPaths::ResolveRecipe(const std::string& path) const {
  ASSIGN_OR_RETURN(std::string recipe, Resolve(path));
  if (!confined_) return recipe;
  std::error_code error;
  const fs::path here = fs::current_path(error);
  std::vector<std::string> open = {recipe};
  for (int depth = 0; depth < 2; ++depth) {  // a ladder's recipes are no ladders
    std::vector<std::string> next;
    for (const std::string& file : open) {
      ASSIGN_OR_RETURN(const FilesOfRecipe named, FilesNamedIn(file));
      for (const std::string& one : named.recipes) {
        ASSIGN_OR_RETURN(next.emplace_back(), Resolve((here / one).string()));
      }
      if (!named.calibration.empty())
        RETURN_IF_ERROR(Resolve((here / named.calibration).string()).status());
    }
    open = std::move(next);
  }
  return recipe;
}

}  // namespace assay
