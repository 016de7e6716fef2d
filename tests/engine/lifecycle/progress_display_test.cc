#include "engine/lifecycle/progress_display.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace assay {
namespace {

using testing::HasSubstr;
using testing::Not;

const absl::Time kStart = absl::UnixEpoch();

// What the steps of two models leave in a file that is no terminal.
std::string InAFile(const std::vector<std::pair<ProgressDisplay::Step, absl::Duration>>& steps) {
  FILE* file = std::tmpfile();
  ProgressDisplay display(file);
  for (const auto& [step, at] : steps) display.Show(step, kStart + at);
  display.Clear();
  std::rewind(file);
  char text[1024] = {};
  const size_t length = std::fread(text, 1, sizeof(text) - 1, file);
  std::fclose(file);
  return std::string(text, length);
}

// The same with a terminal of so many columns.
std::string OnATerminal(int columns, const std::vector<ProgressDisplay::Step>& steps) {
  winsize size{.ws_row = 25, .ws_col = static_cast<unsigned short>(columns)};
  int master = -1, slave = -1;
  if (openpty(&master, &slave, nullptr, nullptr, &size) != 0) return "no terminal to be had";
  FILE* file = fdopen(slave, "w");
  ProgressDisplay display(file);
  absl::Time now = kStart;
  for (const ProgressDisplay::Step& step : steps) display.Show(step, now += absl::Seconds(1));
  display.Clear();
  std::fclose(file);  // the end of what there is to read; it may come in several pieces
  std::string text;
  char piece[4096];
  for (ssize_t length; (length = read(master, piece, sizeof(piece))) > 0;)
    text.append(piece, static_cast<size_t>(length));
  close(master);
  return text;
}

TEST(ProgressDisplayTest, WithoutATerminalAStageIsOneLineWithTheTimeSoFar) {
  EXPECT_EQ(InAFile({{{"m:1", "open", 0, ""}, absl::ZeroDuration()},
                     {{"m:1", "open", 1, "9 tensors"}, absl::Seconds(1)},
                     {{"m:1", "quantize", 0, ""}, absl::Seconds(1.5)},
                     {{"m:1", "quantize", 0.5, "layer 5 of 9"}, absl::Seconds(3)},
                     {{"n:1", "open", 0, ""}, absl::Seconds(4)}}),
            "  m:1    0.0 s  open\n  m:1    1.5 s  quantize\n  n:1    0.0 s  open\n");
}

TEST(ProgressDisplayTest, ALongStageSaysHowFarItIsButNeverTheSameTwice) {
  const std::string text = InAFile({{{"m:1", "verify", 0, ""}, absl::ZeroDuration()},
                                    {{"m:1", "verify", 0, ""}, absl::Seconds(11)},
                                    {{"m:1", "verify", 0.41, "document 3"}, absl::Seconds(12)},
                                    {{"m:1", "verify", 0.41, "document 3"}, absl::Seconds(30)}});
  EXPECT_EQ(text, "  m:1    0.0 s  verify\n  m:1   12.0 s  verify 41 %: document 3\n");
}

TEST(ProgressDisplayTest, OnATerminalOneLineIsRedrawnAndTakenAway) {
  const std::string text =
      OnATerminal(100, {{"m:1", "open", 0, ""}, {"m:1", "quantize", 0.5, "layer 5 of 10"}});
  EXPECT_THAT(text, HasSubstr("m:1  quantize  [############............]  50 %    1.0 s  layer 5"));
  EXPECT_THAT(text, Not(HasSubstr("\n")));
  EXPECT_EQ(text.substr(text.size() - 4), "\r\033[K");
}

TEST(ProgressDisplayTest, ALineIsCutToTheTerminal) {
  const std::string text = OnATerminal(40, {{"m:1", "quantize", 0.5, std::string(200, 'x')}});
  EXPECT_THAT(text, Not(HasSubstr("x")));
  EXPECT_LE(text.size(), 39 + 2 * std::string("\r\033[K\r").size());
}

}  // namespace
}  // namespace assay
