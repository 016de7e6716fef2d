// Advisory lock on a directory (flock(2)): between processes, and between objects of one process.
// Gone with the object, and with its process, however that ends. Movable; one thread each.
#pragma once
#include <string>
#include <utility>

#include "base/status.h"

namespace assay {

class DirectoryLock {
 public:
  enum class Mode { kShared, kExclusive };

  // Waits. Best effort: where there is no such directory, or its file system has no locks, the
  // result holds none, so whoever uses it must still change the directory by renames only.
  static DirectoryLock Wait(const std::string& directory, Mode mode);
  // Exclusive. Aborted: somebody holds it; Unimplemented: it cannot be locked.
  static absl::StatusOr<DirectoryLock> Try(const std::string& directory);

  DirectoryLock() = default;  // holds nothing
  DirectoryLock(DirectoryLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  DirectoryLock& operator=(DirectoryLock&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~DirectoryLock();

 private:
  explicit DirectoryLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace assay
