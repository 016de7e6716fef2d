// Tables, sizes and progress on a terminal. Plain text where there is none, or with NO_COLOR.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace assay {

bool IsTerminal(FILE* file);
int TerminalColumns();                 // of stdout; 100 where it is none
std::string SizeText(uint64_t bytes);  // "128.4 MiB", "0"

// Columns aligned with two spaces between them; the last one ragged.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

enum class Color { kNone, kGreen, kYellow, kRed, kDim };
// Escape codes only when `file` is a terminal and NO_COLOR is not set.
std::string Paint(const std::string& text, Color color, FILE* file);

// One bar per stage, redrawn in place on a terminal; else one line per stage and per five seconds.
class ProgressDisplay {
 public:
  explicit ProgressDisplay(FILE* file) : file_(file), terminal_(IsTerminal(file)) {}
  void Show(const std::string& stage, double fraction, const std::string& message, absl::Time now);
  void End();  // keeps what is drawn and goes to the next line

 private:
  FILE* const file_;
  const bool terminal_;
  std::string stage_;
  absl::Time stage_began_ = absl::InfinitePast(), last_line_ = absl::InfinitePast();
};

}  // namespace assay
