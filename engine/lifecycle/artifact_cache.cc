#include "engine/lifecycle/artifact_cache.h"

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/atomic_file.h"
#include "base/log.h"
#include "base/sha256.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

using Mode = DirectoryLock::Mode;

constexpr size_t kMaxRemembered = 256;
constexpr auto kAbandonedAfter = std::chrono::hours(24);     // where locks do not tell
constexpr auto kFileAbandonedAfter = std::chrono::hours(1);  // written in one go: seconds

bool IsOlderThan(const fs::path& path, std::chrono::hours age) {
  std::error_code error;
  const fs::file_time_type changed = fs::last_write_time(path, error);
  return !error && changed + age < fs::file_time_type::clock::now();
}

// A folder that a writer began and whose process is gone: the writer holds its lock while it lives.
bool IsAbandoned(const fs::path& folder) {
  if (!IsTemporaryName(folder.string())) return false;
  const absl::Status lock = DirectoryLock::Try(folder.string()).status();
  if (!absl::IsUnimplemented(lock)) return lock.ok();
  return IsOlderThan(folder, kAbandonedAfter);
}

std::vector<fs::path> EntriesOf(const std::string& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder, error); !error && it != fs::directory_iterator();
       it.increment(error)) {
    entries.push_back(it->path());
  }
  return entries;
}

// <n> of quarantine/<key>.<n>; -1 when it is something else.
int64_t QuarantineNumber(const fs::path& path) {
  const std::string extension = path.extension().string();
  int64_t number = 0;
  return extension.size() > 1 && absl::SimpleAtoi(extension.substr(1), &number) ? number : -1;
}

// What a process that was killed left of WriteFileAtomically.
void RemoveAbandonedFiles(const std::string& folder) {
  for (const fs::path& file : EntriesOf(folder)) {
    std::error_code error;
    if (IsTemporaryName(file.string()) && fs::is_regular_file(file, error) &&
        IsOlderThan(file, kFileAbandonedAfter)) {
      fs::remove(file, error);
    }
  }
}

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

ArtifactCache::ArtifactCache(std::string root) : root_(std::move(root)) {
  if (enabled()) RemoveAbandoned();
}

void ArtifactCache::RemoveAbandoned() const {
  const DirectoryLock lock = DirectoryLock::Wait(Artifacts(), Mode::kExclusive);
  RemoveAbandonedFiles(root_);
  for (const fs::path& folder : EntriesOf(Artifacts())) {
    RemoveAbandonedFiles(folder.string() + "/certificates");
    if (!IsAbandoned(folder)) continue;
    std::error_code error;
    fs::remove_all(folder, error);
    Log(LogLevel::kInfo, "removed an unfinished artifact",
        {{"path", folder.string()}, {"error", error ? error.message() : "none"}});
  }
}

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
  const DirectoryLock lock = DirectoryLock::Wait(Artifacts(), Mode::kShared);
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

void ArtifactCache::Retarget(ArtifactWriter& writer, const std::string& key) const {
  writer.Retarget(Directory(key));
}

absl::Status ArtifactCache::Quarantine(const std::string& key) const {
  RETURN_IF_ERROR(MakeDirectory(root_ + "/quarantine"));
  const DirectoryLock lock = DirectoryLock::Wait(Artifacts(), Mode::kExclusive);
  const std::vector<fs::path> earlier = EntriesOf(root_ + "/quarantine");
  int64_t number = 0;
  for (const fs::path& path : earlier) number = std::max(number, QuarantineNumber(path) + 1);
  const std::string to = absl::StrCat(root_, "/quarantine/", key, ".", number);
  std::error_code error;
  fs::rename(Directory(key), to, error);
  if (error == std::errc::no_such_file_or_directory)
    return absl::OkStatus();  // another process did
  if (error) {
    return absl::InternalError(
        absl::StrCat("cannot quarantine: to=", to, " error=", error.message()));
  }
  Log(LogLevel::kWarning, "artifact quarantined", {{"key", key}, {"to", to}});
  for (const fs::path& path : earlier) {
    const int64_t n = QuarantineNumber(path);
    if (n >= 0 && n <= number - kMaxQuarantined) fs::remove_all(path, error);
  }
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
  const DirectoryLock lock = DirectoryLock::Wait(Artifacts(), Mode::kShared);
  std::error_code error;
  if (!fs::exists(Directory(key) + "/manifest.json", error)) {
    return absl::FailedPreconditionError("no artifact to certify: directory=" + Directory(key));
  }
  const std::string directory = Directory(key) + "/certificates";
  RETURN_IF_ERROR(MakeDirectory(directory));
  const json body = ToJson(report);
  const json object = {{"sha256", Sha256Hex(body.dump())}, {"report", body}};
  return WriteFileAtomically(directory + "/" + certificate_key + ".json", object.dump(1));
}

std::optional<RememberedRung> ArtifactCache::FindRung(const std::string& key) const {
  if (!enabled()) return std::nullopt;
  const json known = ReadObject(root_ + "/ladders.json");
  const auto it = known.find(key);
  if (it == known.end() || !it->is_object()) return std::nullopt;
  const auto rung = it->find("rung"), tried = it->find("tried");
  if (rung == it->end() || !rung->is_number_unsigned() || tried == it->end() || !tried->is_array())
    return std::nullopt;
  RememberedRung found{.rung = rung->get<size_t>()};
  for (const json& item : *tried) {
    absl::StatusOr<RungReport> read = RungFromJson(item);
    if (!read.ok()) return std::nullopt;
    found.tried.push_back(*std::move(read));
  }
  return found;
}

void ArtifactCache::StoreRung(const std::string& key, const RememberedRung& rung) const {
  if (!enabled()) return;
  const std::string file = root_ + "/ladders.json";
  json known = ReadObject(file);
  if (known.size() >= kMaxRemembered) known = json::object();
  json tried = json::array();
  for (const RungReport& one : rung.tried) tried.push_back(ToJson(one));
  known[key] = {{"rung", rung.rung}, {"tried", std::move(tried)}};
  absl::Status stored = MakeDirectory(root_);
  if (stored.ok()) stored = WriteFileAtomically(file, known.dump(1));
  if (!stored.ok())
    Log(LogLevel::kWarning, "cannot remember a recipe", {{"error", stored.ToString()}});
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
