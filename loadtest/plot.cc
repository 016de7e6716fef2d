#include "loadtest/plot.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "loadtest/report.h"

namespace assay::load {
namespace {

constexpr double kWidth = 640, kHeight = 260, kLeft = 56, kRight = 24, kTop = 10, kBottom = 40;

// From the values of an axis to pixels.
struct Axis {
  double least = 0, most = 1, from = 0, to = 1;
  bool log = false;
  double At(double value) const {
    const double share = log ? std::log(std::max(value, least) / least) / std::log(most / least)
                             : (value - least) / (most - least);
    return from + share * (to - from);
  }
};

std::string Label(double value) {
  if (value != 0 && std::abs(value) < 0.01) return absl::StrFormat("%.0e", value);
  return value >= 1e6 ? absl::StrFormat("%gM", value / 1e6) : absl::StrFormat("%g", value);
}

std::vector<double> Decades(double least, double most) {
  std::vector<double> out;
  for (double value = least; value <= most * 1.0001; value *= 10) out.push_back(value);
  return out;
}

void AddGrid(const Axis& x, const Axis& y, const Plot& plot, std::string& out) {
  for (const double value : Ticks(y.most)) {
    if (value > y.most * 1.0001) continue;
    const double at = y.At(value);
    absl::StrAppendFormat(&out, "<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>", kLeft, at,
                          kWidth - kRight);
    absl::StrAppendFormat(&out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>",
                          kLeft - 6, at + 4, Label(value));
  }
  for (const double value : x.log ? Decades(x.least, x.most) : Ticks(x.most)) {
    if (value > x.most * 1.0001) continue;
    const double at = x.At(value);
    absl::StrAppendFormat(&out, "<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>", at, kTop,
                          kHeight - kBottom);
    absl::StrAppendFormat(&out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", at,
                          kHeight - kBottom + 16, Label(value));
  }
  absl::StrAppendFormat(&out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>",
                        (kLeft + kWidth) / 2, kHeight - 6, EscapeHtml(plot.x_label));
}

}  // namespace

std::vector<double> Ticks(double most) {
  if (!(most > 0)) return {0};
  const double rough = most / 5, decade = std::pow(10, std::floor(std::log10(rough)));
  const double step = decade * (rough / decade < 1.5 ? 1 : rough / decade < 3.5 ? 2 : 5);
  std::vector<double> out;
  for (int i = 0; i * step < most + step * 0.999; ++i) out.push_back(i * step);
  return out;
}

std::string SvgOf(const Plot& plot) {
  double least_x = 1e300, most_x = 0, most_y = 0;
  for (const Series& series : plot.series) {
    for (const auto& [x, y] : series.points) {
      if (x > 0) least_x = std::min(least_x, x);
      most_x = std::max(most_x, x);
      most_y = std::max(most_y, y);
    }
  }
  if (!(most_x > 0)) return "";
  Axis x{0, most_x, kLeft, kWidth - kRight, plot.log_x};
  if (plot.log_x) {
    x.least = std::pow(10, std::floor(std::log10(least_x)));
    x.most = std::pow(10, std::max(std::ceil(std::log10(most_x)), std::log10(x.least) + 1));
  }
  const Axis y{0, most_y > 0 ? Ticks(most_y).back() : 1, kHeight - kBottom, kTop, false};
  std::string out = absl::StrFormat(
      "<figure><figcaption><b>%s</b> <small>%s</small></figcaption><svg viewBox=\"0 0 %g %g\" "
      "role=\"img\" aria-label=\"%s\">",
      EscapeHtml(plot.title), EscapeHtml(plot.y_label), kWidth, kHeight, EscapeHtml(plot.title));
  AddGrid(x, y, plot, out);
  std::string legend;
  for (size_t i = 0; i < plot.series.size(); ++i) {
    const Series& series = plot.series[i];
    if (series.points.empty()) continue;
    absl::StrAppendFormat(&out, "<polyline class=\"line s%d%s\" points=\"", i,
                          series.dashed ? " dashed" : "");
    for (const auto& [px, py] : series.points) {
      absl::StrAppendFormat(&out, "%.1f,%.1f ", x.At(px), y.At(py));
    }
    out += "\"/>";
    for (const auto& [px, py] : series.points) {
      if (!plot.dots) break;
      absl::StrAppendFormat(&out, "<circle class=\"dot s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"3\"/>", i,
                            x.At(px), y.At(py));
    }
    absl::StrAppendFormat(&legend, "<span class=\"s%d\">%s %s</span> ", i,
                          series.dashed ? "- -" : "&#9644;", EscapeHtml(series.name));
  }
  absl::StrAppend(&out, "</svg><p class=\"legend\">", legend, "</p></figure>\n");
  return out;
}

}  // namespace assay::load
