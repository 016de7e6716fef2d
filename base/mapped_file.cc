#include "base/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"

namespace assay {
namespace {

absl::Status FromErrno(const char* what, const std::string& path) {
  return absl::ErrnoToStatus(errno, absl::StrCat("cannot ", what, " file: path=", path));
}

// -1 with errno. A pipe without a writer is not waited for: what is no regular file is refused by
// the caller.
int OpenToRead(const std::string& path) {
  return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
}

absl::Status NotRegular(const std::string& path) {
  return absl::InvalidArgumentError(absl::StrCat("not a regular file: path=", path));
}

// To the end: the size of files in /proc is 0.
absl::StatusOr<std::string> ReadAll(int fd, const std::string& path) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return FromErrno("stat", path);
  if (!S_ISREG(info.st_mode)) return NotRegular(path);
  std::string text;
  std::array<char, 65536> buffer;
  for (;;) {
    const ssize_t count = read(fd, buffer.data(), buffer.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return FromErrno("read", path);
    if (count == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(count));
  }
}

int64_t ModifiedNs(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

// begin: 0 = free. The handler reads these at any moment; Guards::mu orders their owners.
struct MappedFile::Guard {
  std::atomic<uintptr_t> begin = 0, end = 0;
  std::atomic<bool> lost = false;
};

// All mappings of the process, and the handler of the signal that a read behind the end of a
// shortened file raises. As Wayland's compositors do with their clients' buffers: memory of zeros
// takes the place of what is gone, and the reader goes on.
struct MappedFile::Guards {
  Mutex mu;
  std::array<Guard, kMaxMapped> all;
  struct sigaction before {};

  static Guards& Instance() {
    static Guards* const guards = [] {  // never destroyed: the handler stays
      auto* made = new Guards();
      made->page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
      current = made;
      struct sigaction action {};
      action.sa_sigaction = OnBusError;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      sigemptyset(&action.sa_mask);
      sigaction(SIGBUS, &action, &made->before);
      return made;
    }();
    return *guards;
  }

  Guard* Add(uintptr_t begin, size_t size) ABSL_LOCKS_EXCLUDED(mu) {
    const MutexLock lock(mu);
    for (Guard& guard : all) {
      if (guard.begin.load(std::memory_order_relaxed) != 0) continue;
      guard.lost.store(false, std::memory_order_relaxed);
      guard.end.store(begin + size, std::memory_order_relaxed);
      guard.begin.store(begin, std::memory_order_release);
      return &guard;
    }
    return nullptr;
  }
  void Remove(Guard* guard) ABSL_LOCKS_EXCLUDED(mu) {
    const MutexLock lock(mu);
    guard->begin.store(0, std::memory_order_release);
  }

  // From the page of `address` to the end of its mapping. False: none of ours. Async-signal-safe.
  bool Replace(uintptr_t address) {
    for (Guard& guard : all) {
      const uintptr_t begin = guard.begin.load(std::memory_order_acquire);
      const uintptr_t end = guard.end.load(std::memory_order_relaxed);
      if (begin == 0 || address < begin || address >= end) continue;
      guard.lost.store(true, std::memory_order_relaxed);
      const uintptr_t from = begin + (address - begin) / page * page;
      // NOLINTNEXTLINE(performance-no-int-to-ptr): the kernel gave the address as a number
      return mmap(reinterpret_cast<void*>(from), end - from, PROT_READ,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED;
    }
    return false;
  }

  static void OnBusError(int signal, siginfo_t* info, void* context) {
    const int error = errno;
    Guards& guards = *current;
    if (guards.Replace(reinterpret_cast<uintptr_t>(info->si_addr))) {
      errno = error;
      return;
    }
    const struct sigaction& before = guards.before;
    if ((before.sa_flags & SA_SIGINFO) != 0) return before.sa_sigaction(signal, info, context);
    if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN)
      return before.sa_handler(signal);
    ::signal(signal, SIG_DFL);  // the access is repeated, and ends the process
  }

  uintptr_t page = 0;
  static std::atomic<Guards*> current;
};
std::atomic<MappedFile::Guards*> MappedFile::Guards::current = nullptr;

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  const std::shared_ptr<MappedFile> file(new MappedFile());
  file->path_ = path;
  file->fd_ = OpenToRead(path);
  if (file->fd_ < 0) return FromErrno("open", path);
  struct stat info {};
  if (fstat(file->fd_, &info) != 0) return FromErrno("stat", path);
  if (!S_ISREG(info.st_mode)) return NotRegular(path);
  file->size_ = static_cast<size_t>(info.st_size);
  file->modified_ns_ = ModifiedNs(info);
  if (file->size_ == 0) return file;
  void* data = mmap(nullptr, file->size_, PROT_READ, MAP_PRIVATE, file->fd_, 0);
  if (data == MAP_FAILED) return FromErrno("map", path);
  file->data_ = static_cast<const std::byte*>(data);
  file->guard_ = Guards::Instance().Add(reinterpret_cast<uintptr_t>(data), file->size_);
  if (file->guard_ == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("too many mapped files: path=", path, " most=", kMaxMapped));
  }
  return file;
}

MappedFile::~MappedFile() {
  if (guard_ != nullptr) Guards::Instance().Remove(guard_);
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
  if (fd_ >= 0) close(fd_);
}

absl::Status MappedFile::Unchanged() const {
  struct stat info {};
  if (fstat(fd_, &info) != 0) return FromErrno("stat", path_);
  const bool lost = guard_ != nullptr && guard_->lost.load(std::memory_order_relaxed);
  if (!lost && static_cast<size_t>(info.st_size) == size_ && ModifiedNs(info) == modified_ns_)
    return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the file was changed while it was in use: path=", path_,
                                          " bytes=", info.st_size, " when it was opened=", size_));
}

void MappedFile::DropResident(size_t offset, size_t length) const {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page, end = (offset + length) / page * page;
  if (end > begin && end <= size_)
    madvise(const_cast<std::byte*>(data_) + begin, end - begin, MADV_DONTNEED);
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const int fd = OpenToRead(path);
  if (fd < 0) return absl::NotFoundError("cannot read file: path=" + path);
  absl::StatusOr<std::string> text = ReadAll(fd, path);
  close(fd);
  return text;
}

}  // namespace assay
