#include "engine/lifecycle/directory_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>

namespace assay {
namespace {

int OpenDirectory(const std::string& directory) {
  return open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

}  // namespace

DirectoryLock::~DirectoryLock() {
  if (fd_ >= 0) close(fd_);
}

DirectoryLock DirectoryLock::Wait(const std::string& directory, Mode mode) {
  DirectoryLock lock(OpenDirectory(directory));
  if (lock.fd_ < 0) return lock;
  const int operation = mode == Mode::kShared ? LOCK_SH : LOCK_EX;
  while (flock(lock.fd_, operation) != 0 && errno == EINTR) {
  }
  return lock;
}

absl::StatusOr<DirectoryLock> DirectoryLock::Try(const std::string& directory) {
  DirectoryLock lock(OpenDirectory(directory));
  if (lock.fd_ >= 0 && flock(lock.fd_, LOCK_EX | LOCK_NB) == 0) return lock;
  if (lock.fd_ >= 0 && errno == EWOULDBLOCK) {
    return absl::AbortedError("somebody holds the lock: directory=" + directory);
  }
  return absl::UnimplementedError("cannot be locked: directory=" + directory);
}

}  // namespace assay
