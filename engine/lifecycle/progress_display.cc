#include "engine/lifecycle/progress_display.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace assay {
namespace {

constexpr absl::Duration kRedraw = absl::Milliseconds(50), kLongStage = absl::Seconds(10);

size_t Columns(FILE* file) {
  winsize size{};
  if (ioctl(fileno(file), TIOCGWINSZ, &size) == 0 && size.ws_col >= 20) return size.ws_col;
  return 80;
}

int Percent(double fraction) {
  return std::clamp(static_cast<int>(100 * fraction), 0, 100);  // 100 only when it is over
}

}  // namespace

ProgressDisplay::ProgressDisplay(FILE* file) : file_(file), terminal_(isatty(fileno(file)) != 0) {}

void ProgressDisplay::Show(const Step& step, absl::Time now) {
  if (step.model != model_) {
    Clear();
    model_ = step.model;
    began_ = now;
  }
  const bool new_stage = step.stage != stage_;
  if (new_stage) last_percent_ = 0;
  if (!new_stage && now - last_output_ < (terminal_ ? kRedraw : kLongStage)) return;
  if (!new_stage && !terminal_ && Percent(step.fraction) == last_percent_) return;
  stage_ = step.stage;
  last_output_ = now;
  last_percent_ = Percent(step.fraction);
  if (terminal_) {
    Draw(step, now);
  } else {
    PrintLine(step, now);
  }
}

void ProgressDisplay::Draw(const Step& step, absl::Time now) {
  constexpr int kBar = 24;
  const int filled = kBar * last_percent_ / 100;
  const std::string line =
      absl::StrFormat("  %s  %-9s [%s%s] %3d %%  %5.1f s  %s", step.model, step.stage,
                      std::string(filled, '#'), std::string(kBar - filled, '.'), last_percent_,
                      absl::ToDoubleSeconds(now - began_), step.message);
  std::fprintf(file_, "\r\033[K%s\r", line.substr(0, Columns(file_) - 1).c_str());
  std::fflush(file_);
}

void ProgressDisplay::PrintLine(const Step& step, absl::Time now) {
  const std::string far =
      last_percent_ > 0
          ? absl::StrCat(" ", last_percent_, " %", step.message.empty() ? "" : ": ", step.message)
          : "";
  absl::FPrintF(file_, "  %s  %5.1f s  %s%s\n", step.model, absl::ToDoubleSeconds(now - began_),
                step.stage, far);
  std::fflush(file_);
}

void ProgressDisplay::Clear() {
  if (terminal_ && !stage_.empty()) std::fputs("\r\033[K", file_);
  std::fflush(file_);
  model_.clear();
  stage_.clear();
}

}  // namespace assay
