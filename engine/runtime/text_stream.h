// Text of one generation as it becomes certain, ended by stop strings.
//
// The text is what a reader would see who gets it byte by byte and stops at the first stop string
// that completes (of several that complete at once, the longest); it ends before that string. What
// may still turn out to be a stop string is held back. The outcome does not depend on how the text
// is divided into tokens.
//
// Thread rule: belongs to one sequence.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/model/tokenizer.h"

namespace assay {

class TextStream {
 public:
  // `stop` strings are not empty.
  TextStream(std::unique_ptr<Tokenizer::StreamDecoder> decoder, std::vector<std::string> stop);

  // Text that became certain with this token. Empty after a stop string.
  std::string Push(int32_t token);
  // The rest, when the sequence ends for another reason. A stop string may still complete in it.
  std::string Flush();
  bool stopped() const { return stopped_; }

 private:
  std::string Append(std::string text);

  std::unique_ptr<Tokenizer::StreamDecoder> decoder_;
  const std::vector<std::string> stop_;
  std::string held_;  // a proper prefix of a stop string
  bool stopped_ = false;
};

}  // namespace assay
