#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;

TEST(MappedFileTest, MapsTheBytesOfAFile) {
  TempDir dir;
  ASSERT_OK_AND_ASSIGN(const auto file, MappedFile::Open(dir.Write("a", "hello")));
  ASSERT_EQ(file->bytes().size(), 5u);
  EXPECT_EQ(static_cast<char>(file->bytes()[4]), 'o');
}

TEST(MappedFileTest, AnEmptyFileIsAnEmptySpan) {
  TempDir dir;
  ASSERT_OK_AND_ASSIGN(const auto file, MappedFile::Open(dir.Write("a", "")));
  EXPECT_TRUE(file->bytes().empty());
}

TEST(MappedFileTest, NamesTheMissingPath) {
  EXPECT_THAT(MappedFile::Open("/nonexistent/x"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/x")));
}

// Without the guard the first read behind the new end ends the process.
TEST(MappedFileTest, AFileThatShrinksReadsAsZerosAndSaysSo) {
  TempDir dir;
  const std::string path = dir.Write("a", std::string(5 * 65536, 'x'));
  ASSERT_OK_AND_ASSIGN(const auto file, MappedFile::Open(path));
  ASSERT_OK_AND_ASSIGN(const auto other, MappedFile::Open(dir.Write("b", "other")));
  EXPECT_OK(file->Unchanged());
  std::filesystem::resize_file(path, 65536);
  EXPECT_EQ(static_cast<char>(file->bytes()[65535]), 'x');
  EXPECT_EQ(static_cast<char>(file->bytes()[3 * 65536]), '\0');
  EXPECT_EQ(static_cast<char>(file->bytes()[2 * 65536]), '\0');  // before the first replaced page
  EXPECT_EQ(static_cast<char>(file->bytes()[5 * 65536 - 1]), '\0');
  EXPECT_THAT(file->Unchanged(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr(path)));
  EXPECT_OK(other->Unchanged());
}

TEST(MappedFileTest, AFileThatIsWrittenOverSaysSo) {
  TempDir dir;
  const std::string path = dir.Write("a", "hello");
  ASSERT_OK_AND_ASSIGN(const auto file, MappedFile::Open(path));
  // The clock of file systems ticks slowly; a writer a tick later is meant.
  std::filesystem::last_write_time(
      path, std::filesystem::last_write_time(path) + std::chrono::milliseconds(10));
  EXPECT_THAT(file->Unchanged(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST(MappedFileTest, AFileThatIsReplacedOrDeletedIsStillThere) {
  TempDir dir;
  const std::string path = dir.Write("a", "hello");
  ASSERT_OK_AND_ASSIGN(const auto file, MappedFile::Open(path));
  std::filesystem::rename(dir.Write("b", "HELLO, WORLD"), path);
  EXPECT_OK(file->Unchanged());
  std::filesystem::remove(path);
  EXPECT_OK(file->Unchanged());
  EXPECT_EQ(static_cast<char>(file->bytes()[0]), 'h');
}

// A read that goes wrong elsewhere still ends the process.
TEST(MappedFileDeathTest, OtherBusErrorsAreNotSwallowed) {
  TempDir dir;
  ASSERT_OK_AND_ASSIGN(const auto file, MappedFile::Open(dir.Write("a", "hello")));
  const std::string path = dir.Write("b", std::string(8192, 'x'));
  const int fd = open(path.c_str(), O_RDONLY);
  const auto* data =
      static_cast<const volatile char*>(mmap(nullptr, 8192, PROT_READ, MAP_PRIVATE, fd, 0));
  close(fd);
  std::filesystem::resize_file(path, 0);
  EXPECT_DEATH(static_cast<void>(data[5000]), "");
}

TEST(MappedFileTest, RefusesADirectory) {
  TempDir dir;
  EXPECT_THAT(MappedFile::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("regular")));
  EXPECT_THAT(ReadFile(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(dir.path())));
}

// Opened as files are by default, each of these waits until somebody writes: for ever.
TEST(MappedFileTest, APipeIsNotWaitedFor) {
  TempDir dir;
  const std::string path = dir.path() + "/pipe";
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const auto refused = StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(path));
  EXPECT_THAT(MappedFile::Open(path), refused);
  EXPECT_THAT(ReadFile(path), refused);
}

TEST(ReadFileTest, ReadsAllOfIt) {
  TempDir dir;
  std::string text(200001, 'x');  // more than it reads at a time
  text[70000] = '\0';
  EXPECT_EQ(ReadFile(dir.Write("a", text)).value(), text);
  EXPECT_EQ(ReadFile(dir.Write("b", "")).value(), "");
  EXPECT_FALSE(ReadFile("/proc/self/status").value().empty());  // says that it has 0 bytes
  EXPECT_THAT(ReadFile("/nonexistent/x"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/nonexistent/x")));
}

}  // namespace
}  // namespace assay
