#include "engine/lifecycle/artifact_cache.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "base/sha256.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr size_t kMaxRemembered = 256;

absl::Status MakeDirectory(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (!error) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("cannot create directory: path=", path, " error=", error.message()));
}

// Name, size, inode and time of one file; "" when it is not a regular file.
std::string Identity(const fs::path& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return "";
  return absl::StrCat(fs::absolute(path).lexically_normal().string(), "\n", info.st_size, "\n",
                      info.st_ino, "\n", info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec, "\n",
                      info.st_ctim.tv_sec, ".", info.st_ctim.tv_nsec, "\n");
}

std::string IdentityOf(const std::string& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) return Sha256Hex(Identity(path));
  std::vector<std::string> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    files.push_back(Identity(entry.path()));
  }
  std::sort(files.begin(), files.end());
  Sha256 hash;
  for (const std::string& file : files) hash.Update(file);
  return hash.HexDigest();
}

json ReadObject(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return json::object();
  json object = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  return object.is_object() ? object : json::object();
}

}  // namespace

absl::StatusOr<std::string> ArtifactCache::ContentHash(const Checkpoint& checkpoint,
                                                       const std::string& path) {
  if (!enabled()) return checkpoint.ContentHash();
  const std::string file = root_ + "/checkpoints.json", identity = IdentityOf(path);
  json known = ReadObject(file);
  const auto it = known.find(identity);
  if (it != known.end() && it->is_string()) return it->get<std::string>();
  ASSIGN_OR_RETURN(const std::string hash, checkpoint.ContentHash());
  if (known.size() >= kMaxRemembered) known = json::object();
  known[identity] = hash;
  absl::Status stored = MakeDirectory(root_);
  if (stored.ok()) stored = WriteFileAtomically(file, known.dump(1));
  if (!stored.ok()) {  // the hash is right; the next start computes it again
    Log(LogLevel::kWarning, "cannot remember a checkpoint's hash", {{"error", stored.ToString()}});
  }
  return hash;
}

absl::StatusOr<std::unique_ptr<ArtifactReader>> ArtifactCache::Find(const std::string& key) const {
  if (!enabled()) return nullptr;
  absl::StatusOr<std::unique_ptr<ArtifactReader>> reader = ArtifactReader::Open(Directory(key));
  if (absl::IsNotFound(reader.status())) {
    std::error_code error;  // a directory without a manifest was never finished
    if (!fs::exists(Directory(key), error)) return nullptr;
    return absl::DataLossError("artifact without manifest: directory=" + Directory(key));
  }
  if (reader.ok() && (*reader)->manifest().key != key) {
    return absl::DataLossError("artifact of another key: directory=" + Directory(key));
  }
  return reader;
}

absl::StatusOr<std::unique_ptr<ArtifactWriter>> ArtifactCache::NewArtifact(
    const std::string& key) const {
  return ArtifactWriter::Create(Directory(key));
}

absl::Status ArtifactCache::Quarantine(const std::string& key) const {
  RETURN_IF_ERROR(MakeDirectory(root_ + "/quarantine"));
  for (int n = 0; n < 1000; ++n) {
    const std::string to = absl::StrCat(root_, "/quarantine/", key, ".", n);
    std::error_code error;
    if (fs::exists(to, error)) continue;
    fs::rename(Directory(key), to, error);
    if (error) {
      return absl::InternalError(
          absl::StrCat("cannot quarantine: to=", to, " error=", error.message()));
    }
    Log(LogLevel::kWarning, "artifact quarantined", {{"key", key}, {"to", to}});
    return absl::OkStatus();
  }
  std::error_code error;
  fs::remove_all(Directory(key), error);  // a thousand broken copies are enough evidence
  return absl::OkStatus();
}

std::optional<AdmissionReport> ArtifactCache::FindCertificate(
    const std::string& key, const std::string& certificate_key) const {
  const json object = ReadObject(Directory(key) + "/certificates/" + certificate_key + ".json");
  const auto report = object.find("report"), hash = object.find("sha256");
  if (report == object.end() || hash == object.end() || !hash->is_string()) return std::nullopt;
  if (Sha256Hex(report->dump()) != hash->get<std::string>()) return std::nullopt;
  absl::StatusOr<AdmissionReport> read = ReportFromJson(*report);
  if (!read.ok()) return std::nullopt;
  return *std::move(read);
}

absl::Status ArtifactCache::StoreCertificate(const std::string& key,
                                             const std::string& certificate_key,
                                             const AdmissionReport& report) const {
  const std::string directory = Directory(key) + "/certificates";
  RETURN_IF_ERROR(MakeDirectory(directory));
  const json body = ToJson(report);
  const json object = {{"sha256", Sha256Hex(body.dump())}, {"report", body}};
  return WriteFileAtomically(directory + "/" + certificate_key + ".json", object.dump(1));
}

uint64_t ArtifactCache::bytes() const {
  uint64_t total = 0;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(root_, error);
       !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    std::error_code ignored;  // a file that vanished counts as nothing
    if (it->is_regular_file(ignored)) total += it->file_size(ignored);
  }
  return total;
}

}  // namespace assay
