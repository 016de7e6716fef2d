// The folder of models, in Triton's layout and two shorter ones:
//   <repository>/<model>/<version>/<files>   version = a positive whole number; the highest is
//   served <repository>/<model>/<files>             version 1 <repository>/<model>.gguf version 1
// <files> is what OpenCheckpoint takes: safetensors with config.json and tokenizer.json, or one
// GGUF. Hidden entries and folders without a checkpoint are skipped. Thread-safe: reads the disk
// each time.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace assay {

struct RepositoryEntry {
  std::string name;
  int64_t version = 0;
  std::string path;  // for OpenCheckpoint
};

// The highest version of every model, by name. NotFound: no such folder; InvalidArgument: a name
// that cannot be a model's, or the same name twice (both are named).
absl::StatusOr<std::vector<RepositoryEntry>> ScanRepository(const std::string& folder);
// By bytes of their checkpoint files, so that no small model waits for the admission of a big one.
std::vector<RepositoryEntry> SmallestFirst(std::vector<RepositoryEntry> entries);
// NotFound: names the models that exist.
absl::StatusOr<RepositoryEntry> FindInRepository(const std::string& folder, std::string_view name);

// 1 to 128 characters of A-Z a-z 0-9 . _ - that do not begin with a dot.
bool IsModelName(std::string_view name);

}  // namespace assay
