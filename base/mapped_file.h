// A file mapped read-only. The only place that opens and maps files for reading tensors.
#pragma once
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"

namespace assay {

class MappedFile {
 public:
  // NotFound, PermissionDenied, InvalidArgument (not a regular file); an empty file maps to an
  // empty span.
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Tells the kernel that [offset, offset+length) will not be needed soon; the pages leave the
  // resident set.
  void DropResident(size_t offset, size_t length) const;

 private:
  MappedFile(std::string path, const std::byte* data, size_t size)
      : path_(std::move(path)), data_(data), size_(size) {}
  std::string path_;
  const std::byte* data_;
  size_t size_;
};

// The whole file as text. NotFound with the path.
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace assay
