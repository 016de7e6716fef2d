// Artifacts and certificates under one directory, found by content (docs/formats.md):
//
//   <root>/checkpoints.json                 size and time of checkpoint files -> content hash
//   <root>/artifacts/<key>/...              see artifact.h
//   <root>/artifacts/<key>/certificates/<certificate key>.json
//   <root>/quarantine/<key>.<n>/...         what failed its checksums
//
// An artifact answers "what are the quantized weights of this checkpoint under this recipe", a
// certificate "has this artifact been verified for this budget, text, kernels and instruction set".
// Thread-safe: no state but the directory, and every change is a rename.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "engine/lifecycle/artifact.h"
#include "engine/lifecycle/report.h"

namespace assay {

class ArtifactCache {
 public:
  explicit ArtifactCache(std::string root) : root_(std::move(root)) {}
  bool enabled() const { return !root_.empty(); }

  // Checkpoint::ContentHash, remembered by name, size, inode and time of the files at `path`.
  absl::StatusOr<std::string> ContentHash(const Checkpoint& checkpoint, const std::string& path);
  // Null when there is none; DataLoss when there is one that cannot be trusted.
  absl::StatusOr<std::unique_ptr<ArtifactReader>> Find(const std::string& key) const;
  absl::StatusOr<std::unique_ptr<ArtifactWriter>> NewArtifact(const std::string& key) const;
  // Moves a broken artifact out of the way.
  absl::Status Quarantine(const std::string& key) const;

  // Null when there is none, or none that can be read.
  std::optional<AdmissionReport> FindCertificate(const std::string& key,
                                                 const std::string& certificate_key) const;
  absl::Status StoreCertificate(const std::string& key, const std::string& certificate_key,
                                const AdmissionReport& report) const;
  uint64_t bytes() const;  // of all files below the root

 private:
  std::string Directory(const std::string& key) const { return root_ + "/artifacts/" + key; }
  const std::string root_;
};

}  // namespace assay
