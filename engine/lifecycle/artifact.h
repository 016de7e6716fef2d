// A quantized model on disk: manifest.json and weights.bin (docs/formats.md draws the bytes).
// Written tensor by tensor, so quantization never holds a whole model; read likewise, with every
// checksum verified.
#pragma once
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "engine/lifecycle/directory_lock.h"
#include "engine/model/model.h"

namespace assay {

// How one slot is served: a row of the plan (design.md section 2).
struct SlotPlan {
  std::string scheme;
  ActivationMode activation = ActivationMode::kA16;
  bool kept = false;           // the recipe said so; not stored
  bool fallback = false;       // kept in higher precision because the gate or the recipe asked
  std::string why;             // why this precision
  double kl_contribution = 0;  // as LayerReport
};
using Plan = std::map<std::string, SlotPlan, std::less<>>;

// Where a tensor lies in weights.bin.
struct ArtifactTensor {
  std::string role;  // "codes", "scales", "zeros", or a name of QuantizedTensor::extra
  DType dtype = DType::kF32;
  Shape shape;
  uint64_t offset = 0, bytes = 0;
  std::string sha256;
};
struct ArtifactSlot {
  SlotPlan plan;
  Shape shape;
  int64_t group = 0;
  std::vector<ArtifactTensor> tensors;
};
struct ArtifactManifest {
  std::string key, source_hash, quantizer, artifact_hash;
  uint64_t weights_bytes = 0;
  std::map<std::string, ArtifactSlot, std::less<>> slots;
};
nlohmann::json ToJson(const ArtifactManifest& manifest);
// DataLoss: malformed, or the artifact hash does not cover what it says.
absl::StatusOr<ArtifactManifest> ArtifactManifestFromJson(const std::string& text);
// SHA-256 over the plan and the checksums of all tensors; independent of where they lie.
std::string ArtifactHash(const ArtifactManifest& manifest);

// Writes into a directory of its own next to the final one; gone with the writer unless committed.
// One thread.
class ArtifactWriter {
 public:
  // `final_directory` is where Commit moves the artifact. Internal: cannot write there.
  static absl::StatusOr<std::unique_ptr<ArtifactWriter>> Create(std::string final_directory);
  ~ArtifactWriter();
  // Appends the tensors of a slot; a slot that was there already is replaced, and Commit leaves out
  // its old bytes.
  absl::Status Add(const std::string& slot, const QuantizedTensor& tensor, SlotPlan plan);
  absl::Status SetPlan(const std::string& slot, const SlotPlan& plan);
  // Another place for Commit, beside the first.
  void Retarget(std::string final_directory) { final_directory_ = std::move(final_directory); }
  // ArtifactManifest, fsync, rename, fsync of the directory. An artifact that is already there
  // stays when it is the same; another is exchanged in one step (Linux: renameat2), and the
  // certificates beside it stay. So other processes see one complete artifact at any time. Returns
  // the artifact hash.
  absl::StatusOr<std::string> Commit(std::string key, std::string source_hash,
                                     std::string quantizer);
  // Hash of what was added so far.
  std::string hash() const { return ArtifactHash(manifest_); }

 private:
  ArtifactWriter(std::string final_directory, std::string directory)
      : final_directory_(std::move(final_directory)), directory_(std::move(directory)) {}
  absl::Status Publish();
  absl::Status Append(const Tensor& tensor, std::string role, ArtifactSlot& slot);
  absl::Status Align();
  absl::Status Write(const void* data, size_t bytes);
  absl::Status Compact();
  absl::Status Move(int from, ArtifactTensor& tensor);

  std::string final_directory_;
  const std::string directory_;
  DirectoryLock owner_;    // of directory_: tells others that its process lives
  int fd_ = -1;            // of weights.bin
  bool replaced_ = false;  // some of its bytes belong to no slot
  ArtifactManifest manifest_;
};

class ArtifactReader {
 public:
  // NotFound: no manifest there. DataLoss: manifest or weights.bin contradict themselves.
  static absl::StatusOr<std::unique_ptr<ArtifactReader>> Open(const std::string& directory);
  const ArtifactManifest& manifest() const { return manifest_; }
  // The tensors of a slot. NotFound; DataLoss: checksum, size or scheme is wrong (names the slot).
  absl::StatusOr<QuantizedTensor> Read(const std::string& slot) const;
  // One of its extra tensors by name; likewise.
  absl::StatusOr<Tensor> ReadExtra(const std::string& slot, const std::string& name) const;

 private:
  absl::StatusOr<Tensor> ReadTensor(const ArtifactTensor& stored) const;
  ArtifactManifest manifest_;
  std::shared_ptr<const MappedFile> weights_;
};

}  // namespace assay
