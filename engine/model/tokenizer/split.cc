#include "engine/model/tokenizer/split.h"

#include <algorithm>

namespace assay {
namespace {

// Joins each match that does not follow another match to the segment before it.
std::vector<Segment> MergeWithPrevious(const std::vector<Segment>& segments) {
  std::vector<Segment> out;
  bool after_match = false;
  for (const Segment& segment : segments) {
    if (segment.matched && !after_match && !out.empty()) {
      out.back().range.end = segment.range.end;
    } else {
      out.push_back(segment);
    }
    after_match = segment.matched;
  }
  return out;
}

std::vector<Segment> MergeWithNext(const std::vector<Segment>& segments) {
  std::vector<Segment> out;
  bool before_match = false;
  for (auto segment = segments.rbegin(); segment != segments.rend(); ++segment) {
    if (segment->matched && !before_match && !out.empty()) {
      out.back().range.begin = segment->range.begin;
    } else {
      out.push_back(*segment);
    }
    before_match = segment->matched;
  }
  std::reverse(out.begin(), out.end());
  return out;
}

std::vector<Segment> MergeRuns(const std::vector<Segment>& segments) {
  std::vector<Segment> out;
  for (const Segment& segment : segments) {
    if (!out.empty() && out.back().matched == segment.matched) {
      out.back().range.end = segment.range.end;
    } else {
      out.push_back(segment);
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::vector<Segment>> FindSegments(Regex::Matcher& matcher, std::string_view text) {
  std::vector<Segment> segments;
  size_t at = 0;
  while (at < text.size()) {
    ASSIGN_OR_RETURN(const std::optional<TextRange> match, matcher.Next(text, at));
    if (!match.has_value()) break;
    if (match->begin > at) segments.push_back({{at, match->begin}, false});
    segments.push_back({*match, true});
    at = match->end;
  }
  if (at < text.size()) segments.push_back({{at, text.size()}, false});
  return segments;
}

std::vector<Segment> FindSegments(const std::function<bool(CodePoint)>& matches,
                                  std::string_view text) {
  std::vector<Segment> segments;
  size_t from = 0;
  ForEachCodePoint(text, [&](CodePoint c, size_t begin, size_t end) {
    if (!matches(c)) return;
    if (begin > from) segments.push_back({{from, begin}, false});
    segments.push_back({{begin, end}, true});
    from = end;
  });
  if (from < text.size()) segments.push_back({{from, text.size()}, false});
  return segments;
}

void AppendSplit(std::vector<Segment> segments, SplitBehavior behavior, size_t offset,
                 std::vector<TextRange>* out) {
  if (behavior == SplitBehavior::kMergedWithPrevious) segments = MergeWithPrevious(segments);
  if (behavior == SplitBehavior::kMergedWithNext) segments = MergeWithNext(segments);
  if (behavior == SplitBehavior::kContiguous) segments = MergeRuns(segments);
  for (const Segment& segment : segments) {
    if (segment.matched && behavior == SplitBehavior::kRemoved) continue;
    if (segment.range.size() == 0) continue;
    out->push_back({segment.range.begin + offset, segment.range.end + offset});
  }
}

}  // namespace assay
