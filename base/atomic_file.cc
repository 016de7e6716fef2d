#include "base/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr char kMark[] = ".tmp.";

}  // namespace

absl::Status FileError(const std::string& what, const std::string& path) {
  const bool no_room = errno == ENOSPC || errno == EDQUOT;
  const std::string reason = std::strerror(errno);
  const std::string message = absl::StrCat(what, ": path=", path, " error=", reason);
  return no_room ? absl::ResourceExhaustedError(message) : absl::InternalError(message);
}

absl::Status WriteAll(int fd, const std::string& path, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return FileError("cannot write", path);
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

std::string TemporaryName(const std::string& path) {
  std::random_device random;  // the kernel's, or the processor's
  const uint64_t high = random(), low = random();
  return absl::StrCat(path, kMark, absl::Hex(high << 32 | (low & 0xffffffff), absl::kZeroPad16));
}

bool IsTemporaryName(const std::string& path) {
  return path.find(kMark, path.find_last_of('/') + 1) != std::string::npos;
}

absl::Status WriteFileAtomically(const std::string& path, const std::string& text) {
  const std::string temporary = TemporaryName(path);
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return FileError("cannot create file", temporary);
  absl::Status status = WriteAll(fd, temporary, text);
  if (status.ok() && fsync(fd) != 0) status = FileError("cannot flush", temporary);
  close(fd);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    status = FileError("cannot rename to", path);
  }
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

}  // namespace assay
