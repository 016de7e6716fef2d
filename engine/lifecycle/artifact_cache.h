// Artifacts and certificates under one directory, found by content (docs/formats.md):
//
//   <root>/checkpoints.json                 size and time of checkpoint files -> content hash
//   <root>/ladders.json                     checkpoint and ladder -> the recipe that passed
//   <root>/artifacts/<key>/...              see artifact.h
//   <root>/artifacts/<key>/certificates/<certificate key>.json
//   <root>/quarantine/<key>.<n>/...         what failed its checksums; the newest four
//
// An artifact answers "what are the quantized weights of this checkpoint under this recipe", a
// certificate "has this artifact been verified for this budget, text, kernels and instruction set".
// Thread-safe, and several processes may share one root: no state but the directory, every change
// is a rename, and a lock on <root>/artifacts (directory_lock.h) orders them.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "engine/lifecycle/artifact.h"
#include "engine/lifecycle/report.h"

namespace assay {

// Where the climb of a ladder ended, and what was tried before.
struct RememberedRung {
  size_t rung = 0;
  std::vector<RungReport> tried;
};

class ArtifactCache {
 public:
  // Removes what killed processes left half written. An empty root: no cache.
  explicit ArtifactCache(std::string root);
  static constexpr int64_t kMaxQuarantined = 4;

  bool enabled() const { return !root_.empty(); }

  // Checkpoint::ContentHash, remembered by name, size, inode and time of the files at `path`.
  absl::StatusOr<std::string> ContentHash(const Checkpoint& checkpoint, const std::string& path);
  // Null when there is none; DataLoss when there is one that cannot be trusted.
  absl::StatusOr<std::unique_ptr<ArtifactReader>> Find(const std::string& key) const;
  absl::StatusOr<std::unique_ptr<ArtifactWriter>> NewArtifact(const std::string& key) const;
  // Where the writer's artifact will lie, instead of under the key that it was made for.
  void Retarget(ArtifactWriter& writer, const std::string& key) const;
  // Moves a broken artifact out of the way; of those, kMaxQuarantined are kept.
  absl::Status Quarantine(const std::string& key) const;

  // Null when there is none, or none that can be read.
  std::optional<AdmissionReport> FindCertificate(const std::string& key,
                                                 const std::string& certificate_key) const;
  // FailedPrecondition: the artifact is not there (any more).
  absl::Status StoreCertificate(const std::string& key, const std::string& certificate_key,
                                const AdmissionReport& report) const;
  // Empty when there is none, or none that can be read. A rung that cannot be stored is logged: it
  // costs the next admission time.
  std::optional<RememberedRung> FindRung(const std::string& key) const;
  void StoreRung(const std::string& key, const RememberedRung& rung) const;
  uint64_t bytes() const;  // of all files below the root

 private:
  void RemoveAbandoned() const;
  std::string Artifacts() const { return root_ + "/artifacts"; }
  std::string Directory(const std::string& key) const { return Artifacts() + "/" + key; }
  const std::string root_;
};

}  // namespace assay
