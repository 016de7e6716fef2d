#include "engine/runtime/text_stream.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace assay {

TextStream::TextStream(std::unique_ptr<Tokenizer::StreamDecoder> decoder,
                       std::vector<std::string> stop)
    : decoder_(std::move(decoder)), stop_(std::move(stop)) {}

std::string TextStream::Push(int32_t token) {
  if (stopped_) return "";
  return Append(decoder_->Push(token));
}

std::string TextStream::Flush() {
  if (stopped_) return "";
  std::string text = Append(decoder_->Flush());
  if (!stopped_) text += std::exchange(held_, "");
  return text;
}

std::string TextStream::Append(std::string text) {
  if (stop_.empty()) return text;
  const size_t old = held_.size();
  held_ += text;
  for (size_t end = old + 1; end <= held_.size(); ++end) {
    size_t longest = 0;
    for (const std::string& s : stop_)
      if (std::string_view(held_).substr(0, end).ends_with(s))
        longest = std::max(longest, s.size());
    if (longest == 0) continue;
    stopped_ = true;
    held_.resize(end - longest);
    return std::exchange(held_, "");
  }
  // Hold back the longest end that begins a stop string.
  size_t keep = 0;
  for (const std::string& s : stop_) {
    for (size_t n = std::min(s.size() - 1, held_.size()); n > keep; --n)
      if (std::string_view(held_).ends_with(std::string_view(s).substr(0, n))) keep = n;
  }
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, certain.size());
  return certain;
}

}  // namespace assay
