// A line plot as inline SVG: no script, nothing from elsewhere; colours come from the page
// (report_html.cc).
#pragma once
#include <string>
#include <utility>
#include <vector>

namespace assay::load {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;  // (x, y), ascending in x
  bool dashed = false;
};

struct Plot {
  std::string title, x_label, y_label;
  std::vector<Series> series;  // at most 6: one colour each
  bool log_x = false;          // points with x <= 0 are drawn at the left edge
  bool dots = false;           // a dot at each point
};

// A figure with a legend; empty when there is no point.
std::string SvgOf(const Plot& plot);

// Round steps that cover [0, most]: 4 to 10 of them.
std::vector<double> Ticks(double most);

}  // namespace assay::load
