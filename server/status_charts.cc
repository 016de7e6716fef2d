#include "server/status_charts.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace assay {
namespace {

constexpr double kSparkWidth = 240, kSparkHeight = 44;

// One polyline for every stretch without gaps; a lone point is a short stroke.
std::string Polylines(const std::vector<double>& values, double most, const char* kind) {
  std::string out, points;
  const auto flush = [&] {
    if (!points.empty()) {
      absl::StrAppend(&out, "<polyline class=\"", kind, "\" points=\"", points, "\"/>");
    }
    points.clear();
  };
  const double step = kSparkWidth / static_cast<double>(std::max<size_t>(values.size(), 1));
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] < 0) {
      flush();
      continue;
    }
    const double y = 2 + (kSparkHeight - 4) * (1 - std::min(1.0, values[i] / most));
    const double x = static_cast<double>(i) * step;
    absl::StrAppendFormat(&points, "%.1f,%.1f %.1f,%.1f ", x, y, x + step, y);
  }
  flush();
  return out;
}

}  // namespace

std::string EscapeHtml(std::string_view text) {
  return absl::StrReplaceAll(
      absl::string_view(text.data(), text.size()),
      {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}, {"'", "&#39;"}});
}

std::string EncodePathSegment(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (absl::ascii_isalnum(byte) || c == '-' || c == '.' || c == '_' || c == '~') {
      out.push_back(c);
    } else {
      absl::StrAppendFormat(&out, "%%%02X", byte);
    }
  }
  return out;
}

std::string DecodePathSegment(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool hex = text[i] == '%' && i + 2 < text.size() &&
                     absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 1])) &&
                     absl::ascii_isxdigit(static_cast<unsigned char>(text[i + 2]));
    if (hex) {
      out += absl::HexStringToBytes(absl::string_view(text.data() + i + 1, 2));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

std::string DrawSparkline(const Sparkline& sparkline) {
  double most = 0;
  for (const double value : sparkline.line) most = std::max(most, value);
  for (const double value : sparkline.second) most = std::max(most, value);
  if (most <= 0) most = 1;
  const std::string label = EscapeHtml(sparkline.label);
  return absl::StrCat(
      "<figure class=\"spark\"><figcaption>", label, " <b>", EscapeHtml(sparkline.value),
      "</b></figcaption><svg viewBox=\"0 0 240 44\" preserveAspectRatio=\"none\" role=\"img\" "
      "aria-label=\"",
      label, " over the last five minutes\"><line class=\"axis\" x1=\"0\" x2=\"240\" y1=\"42\" ",
      "y2=\"42\"/>", Polylines(sparkline.second, most, "thin"),
      Polylines(sparkline.line, most, "thick"), "</svg><small>", EscapeHtml(sparkline.note),
      "</small></figure>");
}

std::string DrawBand(const Band& band) {
  const double most = std::max(
      1e-12, 1.25 * std::max({band.limit, band.mean, std::min(band.high, 3 * band.limit)}));
  const auto x = [most](double value) { return 600 * std::clamp(value / most, 0.0, 1.0); };
  std::string out =
      "<svg class=\"band\" viewBox=\"0 0 600 30\" preserveAspectRatio=\"none\" role=\"img\" "
      "aria-label=\"mean with its confidence band against the limit\">";
  absl::StrAppendFormat(&out,
                        "<rect class=\"allowed\" x=\"0\" y=\"5\" width=\"%.1f\" height=\"20\"/>"
                        "<rect class=\"beyond\" x=\"%.1f\" y=\"5\" width=\"%.1f\" height=\"20\"/>",
                        x(band.limit), x(band.limit), 600 - x(band.limit));
  if (band.measured) {
    absl::StrAppendFormat(&out,
                          "<rect class=\"range\" x=\"%.1f\" y=\"10\" width=\"%.1f\" "
                          "height=\"10\"/><rect class=\"mean\" x=\"%.1f\" y=\"5\" width=\"4\" "
                          "height=\"20\"/>",
                          x(band.low), std::max(2.0, x(band.high) - x(band.low)),
                          std::max(0.0, x(band.mean) - 2));
  }
  absl::StrAppendFormat(&out,
                        "<rect class=\"limit\" x=\"%.1f\" y=\"0\" width=\"3\" "
                        "height=\"30\"/></svg>",
                        x(band.limit) - 1.5);
  return out;
}

}  // namespace assay
