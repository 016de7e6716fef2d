#include "engine/model/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/mapped_file.h"
#include "base/mutex.h"
#include "base/sha256.h"
#include "engine/model/checkpoint_layout.h"
#include "engine/model/checkpoint_text.h"
#include "engine/model/gguf.h"
#include "engine/model/safetensors.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using Files = std::vector<std::shared_ptr<const MappedFile>>;

// Digest of a whole file that leaves no more than a window of it resident.
std::string HashFile(const MappedFile& file) {
  constexpr size_t kWindow = size_t{64} << 20;
  Sha256 hash;
  const std::span<const std::byte> bytes = file.bytes();
  for (size_t at = 0; at < bytes.size(); at += kWindow) {
    const size_t length = std::min(kWindow, bytes.size() - at);
    hash.Update(bytes.subspan(at, length));
    file.DropResident(at, length);
  }
  return hash.HexDigest();
}

class MappedCheckpoint final : public Checkpoint {
 public:
  MappedCheckpoint(std::string_view format, Files files, CheckpointContents contents)
      : format_(format), files_(std::move(files)), contents_(std::move(contents)) {
    infos_.reserve(contents_.tensors.size());
    for (const StoredTensor& t : contents_.tensors) infos_.push_back(t.info);
  }

  std::string_view format() const override { return format_; }
  std::span<const CheckpointTensor> tensors() const override { return infos_; }
  const nlohmann::json& config() const override { return contents_.config; }
  const nlohmann::json& tokenizer() const override { return contents_.tokenizer; }

  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    ASSIGN_OR_RETURN(const size_t index, IndexOf(name));
    return &infos_[index];
  }

  absl::Status ReadRows(std::string_view name, int64_t row, int64_t rows,
                        std::span<float> out) const override {
    ASSIGN_OR_RETURN(const size_t index, IndexOf(name));
    const StoredTensor& tensor = contents_.tensors[index];
    const MappedFile& file = *files_[tensor.file];
    return Annotate(DecodeRows(tensor, file.bytes(), row, rows, out), file.path());
  }

  void DropResident(std::string_view name) const override {
    const auto index = IndexOf(name);
    if (!index.ok()) return;
    const StoredTensor& tensor = contents_.tensors[*index];
    files_[tensor.file]->DropResident(tensor.offset, tensor.info.stored_bytes);
  }

  absl::StatusOr<std::string> ContentHash() const override {
    {
      const MutexLock lock(mu_);
      if (!content_hash_.empty()) return content_hash_;
    }
    std::string hash =
        ComputeHash();  // outside of the lock: two first callers both compute, and agree
    const MutexLock lock(mu_);
    content_hash_ = std::move(hash);
    return content_hash_;
  }

  uint64_t file_bytes() const override {
    uint64_t bytes = 0;
    for (const auto& file : files_) bytes += file->bytes().size();
    return bytes;
  }
  absl::Status Unchanged() const override {
    for (const auto& file : files_) RETURN_IF_ERROR(file->Unchanged());
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<size_t> IndexOf(std::string_view name) const {
    const auto found = std::ranges::lower_bound(infos_, name, {}, &CheckpointTensor::name);
    if (found != infos_.end() && found->name == name)
      return static_cast<size_t>(found - infos_.begin());
    return absl::NotFoundError(absl::StrCat(files_.front()->path(), ": no tensor ", Quoted(name)));
  }

  std::string ComputeHash() const {
    if (files_.size() == 1) return HashFile(*files_.front());
    const fs::path directory = fs::path(files_.front()->path()).parent_path();
    std::map<std::string, const MappedFile*> named;
    for (const auto& file : files_)
      named[fs::path(file->path()).lexically_relative(directory).string()] = file.get();
    Sha256 all;
    for (const auto& [name, file] : named)
      all.Update(absl::StrCat(HashFile(*file), "  ", name, "\n"));
    return all.HexDigest();
  }

  const std::string format_;
  const Files files_;  // weights first
  const CheckpointContents contents_;
  std::vector<CheckpointTensor>
      infos_;  // of contents_.tensors, in their order; fixed by the constructor
  mutable Mutex mu_;
  mutable std::string content_hash_ ABSL_GUARDED_BY(mu_);  // empty = not yet
};

absl::StatusOr<std::unique_ptr<const Checkpoint>> OpenGguf(const std::string& path) {
  ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::Open(path));
  auto contents = ParseGguf(file->bytes());
  if (!contents.ok()) return Annotate(contents.status(), path);
  return std::make_unique<MappedCheckpoint>("gguf", Files{std::move(file)}, *std::move(contents));
}

absl::StatusOr<std::unique_ptr<const Checkpoint>> OpenSafetensors(const std::string& weights) {
  ASSIGN_OR_RETURN(HuggingFaceFiles read, ReadHuggingFaceFiles(weights));
  RETURN_IF_ERROR(SortByName(read.contents.tensors));
  return std::make_unique<MappedCheckpoint>("safetensors", std::move(read.files),
                                            std::move(read.contents));
}

// The file in `directory` that OpenCheckpoint starts from.
absl::StatusOr<std::string> FindWeights(const fs::path& directory) {
  std::error_code error;
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    if (fs::exists(directory / name, error)) return (directory / name).string();
  }
  std::vector<std::string> ggufs;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (it->path().extension() == ".gguf") ggufs.push_back(it->path().string());
  }
  if (ggufs.size() == 1) return ggufs.front();
  return absl::NotFoundError(
      absl::StrCat("no checkpoint in directory (looked for model.safetensors, "
                   "model.safetensors.index.json or exactly one .gguf): path=",
                   directory.string(), " ggufs=", ggufs.size()));
}

}  // namespace

absl::StatusOr<Tensor> Checkpoint::ReadAll(std::string_view name) const {
  ASSIGN_OR_RETURN(const CheckpointTensor* info, Find(name));
  ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(CpuDevice(), info->shape, DType::kF32));
  const std::span<float> values(tensor.data<float>(), static_cast<size_t>(info->shape.elements()));
  RETURN_IF_ERROR(ReadRows(name, 0, info->shape[0], values));
  return tensor;
}

absl::StatusOr<std::unique_ptr<const Checkpoint>> OpenCheckpoint(const std::string& path) {
  std::error_code error;
  const fs::file_status found = fs::status(path, error);
  if (!fs::exists(found))
    return absl::NotFoundError(absl::StrCat("no such checkpoint: path=", path));
  std::string weights = path;
  if (fs::is_directory(found)) {
    ASSIGN_OR_RETURN(weights, FindWeights(path));
  }
  if (absl::EndsWith(weights, ".gguf")) return OpenGguf(weights);
  if (absl::EndsWith(weights, ".safetensors") ||
      absl::EndsWith(weights, ".safetensors.index.json")) {
    return OpenSafetensors(weights);
  }
  return absl::NotFoundError(absl::StrCat(
      "not a checkpoint (expected a .gguf or .safetensors file, or a directory): path=", path));
}

}  // namespace assay
