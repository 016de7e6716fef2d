// A file mapped read-only. The only place that opens and maps files for reading tensors.
//
// A file that somebody shortens while it is mapped does not end the process: what is gone reads as
// zeros from then on, and Unchanged() says so. Whoever must rely on what was read asks it
// afterwards.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"

namespace assay {

class MappedFile {
 public:
  // NotFound, PermissionDenied, InvalidArgument (not a regular file), ResourceExhausted (more than
  // kMaxMapped files at once); an empty file maps to an empty span.
  static constexpr size_t kMaxMapped = 4096;
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Tells the kernel that [offset, offset+length) will not be needed soon; the pages leave the
  // resident set.
  void DropResident(size_t offset, size_t length) const;
  // DataLoss where the file that was opened has another size or time of change by now, whatever
  // lies under its path.
  absl::Status Unchanged() const;

 private:
  struct Guard;  // what the signal handler knows of a mapping
  struct Guards;
  MappedFile() = default;
  std::string path_;
  int fd_ = -1;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int64_t modified_ns_ = 0;
  Guard* guard_ = nullptr;
};

// The whole file as text. NotFound: cannot be opened; InvalidArgument: not a regular file (a pipe
// is not waited for); other errors of the disk. All with the path.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace assay
