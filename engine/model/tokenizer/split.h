// What the pre-tokenizers are made of: a text cut into pieces, and the five ways of treating what a
// pattern matched. Thread rule: free functions, thread-safe.
#pragma once
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "engine/model/tokenizer/regex.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {

struct Pieces {
  std::string text;
  std::vector<TextRange> ranges;  // non-empty pieces of `text`, ascending
  bool at_start = false;          // the first piece begins the whole input
};

enum class SplitBehavior {  // of "the-final--countdown" at '-':
  kRemoved,                 // the, final, countdown
  kIsolated,                // the, -, final, -, -, countdown
  kMergedWithPrevious,      // the-, final-, -, countdown
  kMergedWithNext,          // the, -final, -, -countdown
  kContiguous,              // the, -, final, --, countdown
};

struct Segment {
  TextRange range;
  bool matched = false;
};

// The whole of `text`, in order, alternating as the matches say. ResourceExhausted from the
// matcher.
absl::StatusOr<std::vector<Segment>> FindSegments(Regex::Matcher& matcher, std::string_view text);
// Each character that `matches` is a segment of its own.
std::vector<Segment> FindSegments(const std::function<bool(CodePoint)>& matches,
                                  std::string_view text);

// Appends the non-empty pieces of `segments`, `offset` added to each end.
void AppendSplit(std::vector<Segment> segments, SplitBehavior behavior, size_t offset,
                 std::vector<TextRange>* out);

}  // namespace assay
