// A Unicode regular expression with the meaning it has in a tokenizer.json (Oniguruma), run by
// PCRE2's compiler to machine code. The only file that knows PCRE2 is regex.cc.
//
// Differences between the two dialects that tokenizers meet are bridged at compile time: \s is
// White_Space (PCRE2's own has U+180E), \w is that of UTS 18, ^ and $ match at every line.
//
// Thread rule: a Regex is immutable and thread-safe; a Matcher belongs to one thread.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/status.h"

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;

namespace assay {

struct TextRange {
  size_t begin = 0;  // bytes
  size_t end = 0;
  size_t size() const { return end - begin; }
};

class Regex {
 public:
  enum class Syntax { kPattern, kLiteral };
  // InvalidArgument with the pattern, PCRE2's message and the offset.
  static absl::StatusOr<Regex> Compile(std::string_view pattern, Syntax syntax);
  const std::string& pattern() const { return pattern_; }

  class Matcher {
   public:
    explicit Matcher(const Regex& regex);
    // The leftmost non-empty match in text[from, end), which must be valid UTF-8; nullopt when
    // there is none. ResourceExhausted when the pattern needs more steps than PCRE2's match limit.
    absl::StatusOr<std::optional<TextRange>> Next(std::string_view text, size_t from);

   private:
    struct Free {
      void operator()(pcre2_real_match_data_8* p) const;
      void operator()(pcre2_real_match_context_8* p) const;
      void operator()(pcre2_real_jit_stack_8* p) const;
    };
    const Regex& regex_;
    std::unique_ptr<pcre2_real_match_data_8, Free> data_;
    std::unique_ptr<pcre2_real_match_context_8, Free> context_;
    std::unique_ptr<pcre2_real_jit_stack_8, Free>
        stack_;  // only once the default 32 KiB were too few
  };

 private:
  struct Free {
    void operator()(pcre2_real_code_8* p) const;
  };
  std::string pattern_;
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace assay
