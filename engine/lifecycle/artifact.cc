#include "engine/lifecycle/artifact.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/atomic_file.h"
#include "base/sha256.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kAlignment = 64;

absl::Status SyncDirectory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FileError("cannot open directory", path);
  const int result = fsync(fd);
  close(fd);
  return result == 0 ? absl::OkStatus() : FileError("cannot flush directory", path);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ArtifactWriter>> ArtifactWriter::Create(
    std::string final_directory) {
  const std::string directory = TemporaryName(final_directory);
  const std::string parent = fs::path(final_directory).parent_path().string();
  std::error_code error;
  fs::create_directories(parent, error);
  // Whoever looks for abandoned folders sees this one with its owner.
  const DirectoryLock lock = DirectoryLock::Wait(parent, DirectoryLock::Mode::kShared);
  // One that is there already would be another writer's.
  if (!error && !fs::create_directory(directory, error) && !error) {
    error = std::make_error_code(std::errc::file_exists);
  }
  if (error) {
    return absl::InternalError(
        absl::StrCat("cannot create directory: path=", directory, " error=", error.message()));
  }
  std::unique_ptr<ArtifactWriter> writer(new ArtifactWriter(std::move(final_directory), directory));
  writer->owner_ = DirectoryLock::Wait(directory, DirectoryLock::Mode::kExclusive);
  const std::string path = directory + "/weights.bin";
  writer->fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (writer->fd_ < 0) return FileError("cannot create file", path);
  return writer;
}

ArtifactWriter::~ArtifactWriter() {
  if (fd_ >= 0) close(fd_);
  std::error_code ignored;  // gone already after Commit
  fs::remove_all(directory_, ignored);
}

absl::Status ArtifactWriter::Write(const void* data, size_t bytes) {
  RETURN_IF_ERROR(
      WriteAll(fd_, directory_ + "/weights.bin", {static_cast<const char*>(data), bytes}));
  manifest_.weights_bytes += bytes;
  return absl::OkStatus();
}

absl::Status ArtifactWriter::Align() {
  static constexpr char kZeros[kAlignment] = {};
  const uint64_t misaligned = manifest_.weights_bytes % kAlignment;
  return misaligned == 0 ? absl::OkStatus() : Write(kZeros, kAlignment - misaligned);
}

absl::Status ArtifactWriter::Append(const Tensor& tensor, std::string role, ArtifactSlot& slot) {
  if (tensor.empty()) return absl::OkStatus();
  RETURN_IF_ERROR(Align());
  ArtifactTensor stored{.role = std::move(role),
                        .dtype = tensor.dtype(),
                        .shape = tensor.shape(),
                        .offset = manifest_.weights_bytes,
                        .bytes = tensor.bytes()};
  Sha256 hash;
  hash.Update({tensor.data<std::byte>(), tensor.bytes()});
  stored.sha256 = hash.HexDigest();
  RETURN_IF_ERROR(Write(tensor.data<std::byte>(), tensor.bytes()));
  slot.tensors.push_back(std::move(stored));
  return absl::OkStatus();
}

absl::Status ArtifactWriter::Add(const std::string& name, const QuantizedTensor& tensor,
                                 SlotPlan plan) {
  ArtifactSlot slot{.plan = std::move(plan), .shape = tensor.shape, .group = tensor.group};
  RETURN_IF_ERROR(Append(tensor.codes, "codes", slot));
  RETURN_IF_ERROR(Append(tensor.scales, "scales", slot));
  RETURN_IF_ERROR(Append(tensor.zeros, "zeros", slot));
  for (const auto& [role, extra] : tensor.extra) {
    RETURN_IF_ERROR(Append(extra, "extra." + role, slot));
  }
  replaced_ = replaced_ || manifest_.slots.contains(name);
  manifest_.slots[name] = std::move(slot);
  return absl::OkStatus();
}

// Copies one tensor to the end of the new file.
absl::Status ArtifactWriter::Move(int from, ArtifactTensor& tensor) {
  RETURN_IF_ERROR(Align());
  std::vector<char> buffer(std::min<uint64_t>(tensor.bytes, 1 << 20));
  uint64_t at = tensor.offset, left = tensor.bytes;
  tensor.offset = manifest_.weights_bytes;
  while (left > 0) {
    const ssize_t count =
        pread(from, buffer.data(), std::min<uint64_t>(left, buffer.size()), static_cast<off_t>(at));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return FileError("cannot read back", directory_ + "/weights.bin");
    RETURN_IF_ERROR(Write(buffer.data(), static_cast<size_t>(count)));
    at += static_cast<uint64_t>(count);
    left -= static_cast<uint64_t>(count);
  }
  return absl::OkStatus();
}

// Writes weights.bin anew with only what the manifest names.
absl::Status ArtifactWriter::Compact() {
  const std::string path = directory_ + "/weights.bin", compact = directory_ + "/weights.new";
  const int fd = open(compact.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return FileError("cannot create file", compact);
  const int old = std::exchange(fd_, fd);
  manifest_.weights_bytes = 0;
  absl::Status status;
  for (auto& [name, slot] : manifest_.slots) {
    for (ArtifactTensor& tensor : slot.tensors) {
      if (status.ok()) status = Move(old, tensor);
    }
  }
  close(old);
  RETURN_IF_ERROR(status);
  if (rename(compact.c_str(), path.c_str()) != 0) return FileError("cannot rename to", path);
  return absl::OkStatus();
}

absl::Status ArtifactWriter::SetPlan(const std::string& name, const SlotPlan& plan) {
  const auto it = manifest_.slots.find(name);
  if (it == manifest_.slots.end()) {
    return absl::InternalError("no such slot in the artifact: slot=" + name);
  }
  it->second.plan = plan;
  return absl::OkStatus();
}

absl::StatusOr<std::string> ArtifactWriter::Commit(std::string key, std::string source_hash,
                                                   std::string quantizer) {
  if (replaced_) RETURN_IF_ERROR(Compact());
  manifest_.key = std::move(key);
  manifest_.source_hash = std::move(source_hash);
  manifest_.quantizer = std::move(quantizer);
  manifest_.artifact_hash = ArtifactHash(manifest_);
  if (fsync(fd_) != 0) return FileError("cannot flush", directory_ + "/weights.bin");
  close(fd_);
  fd_ = -1;
  RETURN_IF_ERROR(WriteFileAtomically(directory_ + "/manifest.json", ToJson(manifest_).dump(1)));
  RETURN_IF_ERROR(SyncDirectory(directory_));
  RETURN_IF_ERROR(Publish());
  return manifest_.artifact_hash;
}

// What is left at directory_ afterwards goes with the writer.
absl::Status ArtifactWriter::Publish() {
  const std::string parent = fs::path(final_directory_).parent_path().string();
  const DirectoryLock lock = DirectoryLock::Wait(parent, DirectoryLock::Mode::kExclusive);
  if (rename(directory_.c_str(), final_directory_.c_str()) == 0) return SyncDirectory(parent);
  if (errno != ENOTEMPTY && errno != EEXIST) {
    return FileError("cannot rename to", final_directory_);
  }
  const auto there = ArtifactReader::Open(final_directory_);
  if (there.ok() && (*there)->manifest().key == manifest_.key &&
      (*there)->manifest().artifact_hash == manifest_.artifact_hash) {
    return absl::OkStatus();
  }
  if (renameat2(AT_FDCWD, directory_.c_str(), AT_FDCWD, final_directory_.c_str(),
                RENAME_EXCHANGE) != 0) {
    return FileError("cannot exchange with", final_directory_);
  }
  const std::string old = directory_ + "/certificates", kept = final_directory_ + "/certificates";
  if (rename(old.c_str(), kept.c_str()) != 0 && errno != ENOENT) {
    return FileError("cannot rename to", kept);
  }
  return SyncDirectory(parent);
}

absl::StatusOr<std::unique_ptr<ArtifactReader>> ArtifactReader::Open(const std::string& directory) {
  const std::string path = directory + "/manifest.json";
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  auto reader = std::make_unique<ArtifactReader>();
  absl::StatusOr<ArtifactManifest> manifest = ArtifactManifestFromJson(text);
  if (!manifest.ok()) return Annotate(manifest.status(), path);
  reader->manifest_ = *std::move(manifest);
  absl::StatusOr<std::shared_ptr<const MappedFile>> weights =
      MappedFile::Open(directory + "/weights.bin");
  if (!weights.ok()) return absl::DataLossError(weights.status().message());
  reader->weights_ = *std::move(weights);
  if (reader->weights_->bytes().size() != reader->manifest_.weights_bytes) {
    return absl::DataLossError(
        absl::StrCat("weights.bin has another size: bytes=", reader->weights_->bytes().size(),
                     " expected=", reader->manifest_.weights_bytes, " directory=", directory));
  }
  return reader;
}

absl::StatusOr<Tensor> ArtifactReader::ReadTensor(const ArtifactTensor& stored) const {
  const std::span<const std::byte> bytes =
      weights_->bytes().subspan(stored.offset, stored.bytes);  // bounds: ArtifactManifestFromJson
  Sha256 hash;
  hash.Update(bytes);
  if (hash.HexDigest() != stored.sha256) {
    return absl::DataLossError(absl::StrCat("checksum is wrong: tensor=", stored.role));
  }
  ASSIGN_OR_RETURN(Tensor tensor, Tensor::Create(CpuDevice(), stored.shape, stored.dtype));
  std::memcpy(tensor.data<std::byte>(), bytes.data(), bytes.size());
  weights_->DropResident(stored.offset, stored.bytes);
  return tensor;
}

absl::StatusOr<QuantizedTensor> ArtifactReader::Read(const std::string& name) const {
  const auto it = manifest_.slots.find(name);
  if (it == manifest_.slots.end()) {
    return absl::NotFoundError("the artifact has no such slot: slot=" + name);
  }
  const ArtifactSlot& slot = it->second;
  QuantizedTensor tensor;
  const absl::StatusOr<const QuantScheme*> scheme = FindScheme(slot.plan.scheme);
  if (!scheme.ok()) {
    return absl::DataLossError(absl::StrCat(name, ": ", scheme.status().message()));
  }
  tensor.scheme = *scheme;
  tensor.shape = slot.shape;
  tensor.group = slot.group;
  for (const ArtifactTensor& stored : slot.tensors) {
    absl::StatusOr<Tensor> read = ReadTensor(stored);
    if (!read.ok()) return Annotate(read.status(), name);
    if (stored.role == "codes") {
      tensor.codes = *std::move(read);
    } else if (stored.role == "scales") {
      tensor.scales = *std::move(read);
    } else if (stored.role == "zeros") {
      tensor.zeros = *std::move(read);
    } else if (stored.role.rfind("extra.", 0) == 0) {
      tensor.extra[stored.role.substr(6)] = *std::move(read);
    } else {
      return absl::DataLossError(absl::StrCat(name, ": unknown tensor: role=", stored.role));
    }
  }
  return tensor;
}

absl::StatusOr<Tensor> ArtifactReader::ReadExtra(const std::string& slot,
                                                 const std::string& name) const {
  const auto it = manifest_.slots.find(slot);
  if (it != manifest_.slots.end()) {
    for (const ArtifactTensor& stored : it->second.tensors) {
      if (stored.role != "extra." + name) continue;
      absl::StatusOr<Tensor> read = ReadTensor(stored);
      return read.ok() ? std::move(read) : Annotate(read.status(), slot);
    }
  }
  return absl::NotFoundError(
      absl::StrCat("the artifact has no such tensor: slot=", slot, " name=", name));
}

}  // namespace assay
