// Pieces of the status page: escaped text and small SVG pictures. Pure functions.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace assay {

// Text for HTML, also inside a quoted attribute.
std::string EscapeHtml(std::string_view text);
// A segment of a path: all but letters, digits, "-", ".", "_" and "~" as %XX.
std::string EncodePathSegment(std::string_view text);
// The reverse, once. A "%" without two hexadecimal digits stays.
std::string DecodePathSegment(std::string_view text);

struct Sparkline {
  std::string label, value;    // as text: they are escaped here
  std::string note;            // under the picture
  std::vector<double> line;    // oldest first; negative: a gap
  std::vector<double> second;  // drawn thinner, on the same scale; may be empty
};
std::string DrawSparkline(const Sparkline& sparkline);

// The band of a mean against its limit, from 0 to somewhat beyond both.
struct Band {
  double mean = 0, low = 0, high = 0, limit = 0;
  bool measured = false;
};
std::string DrawBand(const Band& band);

}  // namespace assay
