#include "tests/support/golden.h"

#include <lzma.h>
#include <stdlib.h>

#include <cstdio>
#include <fstream>
#include <sstream>

namespace assay {
namespace {

[[noreturn]] void Die(const std::string& what, const std::string& path) {
  std::fprintf(stderr, "%s: %s\n", what.c_str(), path.c_str());
  std::abort();
}

std::string Decompress(const std::string& packed, const std::string& path) {
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, UINT64_MAX, LZMA_CONCATENATED) != LZMA_OK)
    Die("cannot start xz", path);
  stream.next_in = reinterpret_cast<const uint8_t*>(packed.data());
  stream.avail_in = packed.size();
  std::string out, chunk(1 << 20, '\0');
  lzma_ret result = LZMA_OK;
  while (result == LZMA_OK) {
    stream.next_out = reinterpret_cast<uint8_t*>(chunk.data());
    stream.avail_out = chunk.size();
    result = lzma_code(&stream, LZMA_FINISH);
    out.append(chunk.data(), chunk.size() - stream.avail_out);
  }
  lzma_end(&stream);
  if (result != LZMA_STREAM_END) Die("broken xz file", path);
  return out;
}

}  // namespace

std::string GoldenPath(std::string_view relative) {
  const char* root = getenv("ASSAY_TEST_DATA");
  return std::string(root != nullptr ? root : ASSAY_TEST_DATA) + "/" + std::string(relative);
}

std::string ReadGolden(std::string_view relative) {
  const std::string path = GoldenPath(relative);
  std::ifstream file(path, std::ios::binary);
  if (!file) Die("cannot read golden file", path);
  std::ostringstream bytes;
  bytes << file.rdbuf();
  return path.ends_with(".xz") ? Decompress(bytes.str(), path) : bytes.str();
}

nlohmann::json ReadGoldenJson(std::string_view relative) {
  return nlohmann::json::parse(ReadGolden(relative));
}

TempDir::TempDir() {
  std::string pattern = (std::filesystem::temp_directory_path() / "assay-test-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) Die("cannot make a temporary directory", pattern);
  path_ = pattern;
}
TempDir::~TempDir() {
  std::error_code ignored;  // a leftover directory in /tmp fails no test
  std::filesystem::remove_all(path_, ignored);
}

std::string TempDir::Write(std::string_view name, std::string_view bytes) const {
  const std::filesystem::path file = path_ / name;
  std::filesystem::create_directories(file.parent_path());
  std::ofstream out(file, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return file.string();
}

std::string TempDir::Unpack(std::string_view golden) const {
  std::string name = std::filesystem::path(golden).filename().string();
  if (name.ends_with(".xz")) name.resize(name.size() - 3);
  return Write(name, ReadGolden(golden));
}

}  // namespace assay
