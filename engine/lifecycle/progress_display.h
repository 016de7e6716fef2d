// How an admission shows itself on stderr, in the server while it starts and in `assay admit`. On
// a terminal: one line per model, redrawn (stage, bar, percent, time). Elsewhere: a line when a
// stage begins, and every ten seconds one that says how far a long one has come.
//
// Thread rule: one thread at a time. Between calls the cursor stands at the left of the line that
// is redrawn, so that other output (base/log.h) takes its place instead of following it.
#pragma once
#include <cstdio>
#include <string>

#include "absl/time/time.h"

namespace assay {

class ProgressDisplay {
 public:
  explicit ProgressDisplay(FILE* file);

  struct Step {
    std::string model;  // "smollm2:1"; another one begins a new line
    std::string stage;
    double fraction = 0;  // of the stage, 0..1
    std::string message;  // may be empty
  };
  void Show(const Step& step, absl::Time now);
  // Takes away the line that is redrawn. The next step begins anew.
  void Clear();

 private:
  void Draw(const Step& step, absl::Time now);
  void PrintLine(const Step& step, absl::Time now);

  FILE* const file_;
  const bool terminal_;
  std::string model_, stage_;
  int last_percent_ = 0;
  absl::Time began_, last_output_;  // of the model's first step; of whatever was shown last
};

}  // namespace assay
