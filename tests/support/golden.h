// Golden data under tests/golden: plain or xz-compressed, read whole. Missing or broken files abort
// the test binary with the path: a golden that cannot be read is a broken checkout, not a test
// result.
#pragma once
#include <cstddef>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace assay {

std::string GoldenPath(std::string_view relative);  // absolute path
std::string ReadGolden(std::string_view relative);  // bytes; a name ending in .xz is decompressed
nlohmann::json ReadGoldenJson(std::string_view relative);  // likewise, parsed

// The decompressed file under a fresh temporary directory that is removed when the object dies.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string path() const { return path_.string(); }
  std::string Write(std::string_view name,
                    std::string_view bytes) const;    // returns the file's path
  std::string Unpack(std::string_view golden) const;  // golden .xz -> file without .xz

 private:
  std::filesystem::path path_;
};

}  // namespace assay
