#include "base/mapped_file.h"

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

TEST(MappedFileTest, RefusesADirectory) {
  TempDir dir;
  EXPECT_THAT(MappedFile::Open(dir.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("regular")));
}

}  // namespace
}  // namespace assay
