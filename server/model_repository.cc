#include "server/model_repository.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

bool IsCheckpointFile(const fs::path& path) {
  return path.extension() == ".gguf" || path.extension() == ".safetensors";
}

bool IsHidden(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.empty() || name[0] == '.';
}

std::optional<int64_t> VersionOf(const fs::path& path) {
  int64_t version = 0;
  const std::string name = path.filename().string();
  if (!absl::SimpleAtoi(name, &version) || version <= 0 || name != absl::StrCat(version)) {
    return std::nullopt;
  }
  return version;
}

std::vector<fs::path> ListFolder(const fs::path& folder, std::error_code& error) {
  std::vector<fs::path> out;
  fs::directory_iterator it(folder, error);
  while (!error && it != fs::directory_iterator()) {
    if (!IsHidden(it->path())) out.push_back(it->path());
    it.increment(error);
  }
  std::sort(out.begin(), out.end());
  return out;
}

bool HoldsCheckpoint(const fs::path& folder) {
  std::error_code error;
  const std::vector<fs::path> files = ListFolder(folder, error);
  return std::any_of(files.begin(), files.end(), IsCheckpointFile);
}

uint64_t CheckpointBytes(const fs::path& path) {
  std::error_code error;
  const std::vector<fs::path> files =
      fs::is_directory(path, error) ? ListFolder(path, error) : std::vector<fs::path>{path};
  uint64_t bytes = 0;
  for (const fs::path& file : files) {
    const uintmax_t size = IsCheckpointFile(file) ? fs::file_size(file, error) : 0;
    if (!error) bytes += size;  // what cannot be read is reported by its admission
  }
  return bytes;
}

std::optional<RepositoryEntry> HighestVersion(const fs::path& folder) {
  std::error_code error;
  std::optional<RepositoryEntry> best;
  for (const fs::path& entry : ListFolder(folder, error)) {
    const std::optional<int64_t> version = VersionOf(entry);
    if (!version || !fs::is_directory(entry, error) || !HoldsCheckpoint(entry)) continue;
    if (!best || *version > best->version) {
      best = RepositoryEntry{folder.filename().string(), *version, entry.string()};
    }
  }
  if (!best && HoldsCheckpoint(folder)) {
    best = RepositoryEntry{folder.filename().string(), 1, folder.string()};
  }
  return best;
}

}  // namespace

bool IsModelName(std::string_view name) {
  if (name.empty() || name.size() > 128 || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '_' || c == '-';
  });
}

absl::StatusOr<std::vector<RepositoryEntry>> ScanRepository(const std::string& folder) {
  std::error_code error;
  const std::vector<fs::path> entries = ListFolder(folder, error);
  if (error) {
    return absl::NotFoundError(
        absl::StrCat("cannot read the model repository: ", folder, ": ", error.message()));
  }
  std::vector<RepositoryEntry> out;
  for (const fs::path& entry : entries) {
    std::optional<RepositoryEntry> found;
    if (fs::is_directory(entry, error)) {
      found = HighestVersion(entry);
    } else if (entry.extension() == ".gguf") {
      found = RepositoryEntry{entry.stem().string(), 1, entry.string()};
    }
    if (!found) continue;
    if (!IsModelName(found->name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("not a model name: '", found->name,
                       "'; expected letters, digits, '.', '_', '-', at most 128, no leading dot: ",
                       found->path));
    }
    for (const RepositoryEntry& other : out) {
      if (other.name == found->name) {
        return absl::InvalidArgumentError(absl::StrCat("two models of one name: ", found->name,
                                                       ": ", other.path, " and ", found->path));
      }
    }
    out.push_back(*std::move(found));
  }
  std::sort(out.begin(), out.end(),
            [](const RepositoryEntry& a, const RepositoryEntry& b) { return a.name < b.name; });
  return out;
}

std::vector<RepositoryEntry> SmallestFirst(std::vector<RepositoryEntry> entries) {
  std::map<std::string, uint64_t> bytes;  // by path, asked once
  for (const RepositoryEntry& entry : entries) bytes[entry.path] = CheckpointBytes(entry.path);
  std::stable_sort(entries.begin(), entries.end(),
                   [&](const RepositoryEntry& a, const RepositoryEntry& b) {
                     return bytes[a.path] < bytes[b.path];
                   });
  return entries;
}

absl::StatusOr<RepositoryEntry> FindInRepository(const std::string& folder, std::string_view name) {
  const std::string wanted(name);
  if (folder.empty()) {
    return absl::NotFoundError(
        absl::StrCat("the server has no model repository to load from: model=", wanted));
  }
  ASSIGN_OR_RETURN(const std::vector<RepositoryEntry> entries, ScanRepository(folder));
  std::vector<std::string> names;
  for (const RepositoryEntry& entry : entries) {
    if (entry.name == wanted) return entry;
    names.push_back(entry.name);
  }
  return absl::NotFoundError(absl::StrCat("no such model in the repository: '", wanted,
                                          "'; it holds: ", absl::StrJoin(names, ", ")));
}

}  // namespace assay
