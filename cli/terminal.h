// Tables, sizes and colours on a terminal. Plain text where there is none, or with NO_COLOR.
#pragma once
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace assay {

bool IsTerminal(FILE* file);
int TerminalColumns();                 // of stdout; 100 where it is none
std::string SizeText(uint64_t bytes);  // "128.4 MiB", "0"

// Columns aligned with two spaces between them; the last one ragged.
std::string FormatTable(const std::vector<std::vector<std::string>>& rows);

enum class Color { kNone, kGreen, kYellow, kRed, kDim };
// Escape codes only when `file` is a terminal and NO_COLOR is not set.
std::string Paint(const std::string& text, Color color, FILE* file);

}  // namespace assay
