// Sound files of every format that comes from outside, and what the server does with them: loads
// them and runs what they hold for one step.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "base/status.h"
#include "tests/fuzz/hostile/mutations.h"

namespace assay {

struct Victim {
  std::map<std::string, std::string> files;  // name -> bytes
  std::vector<std::string> targets;          // those that are changed
};
// "gguf", "safetensors", "tokenizer", "calibration", "artifact".
const std::vector<std::string>& AllFormats();
std::vector<Victim> VictimsOf(const std::string& format);

// Changes one of the targets. An artifact's checksums are made right again half of the time:
// whoever writes it can do that, too.
void Damage(const std::string& format, Victim& victim, Mutations& mutations);

struct Outcome {
  absl::Status status;  // of loading, or of the step
  bool opened = false;  // what refused it came after the files were read
};
// The victim's files lie in `folder`.
Outcome LoadAndRun(const std::string& format, const Victim& victim, const std::string& folder);

}  // namespace assay
