#include "engine/model/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

constexpr size_t kFirstJitStackBytes = 256 << 10;
constexpr size_t kLastJitStackBytes = 8 << 20;
constexpr char kWord[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";

// The class escapes rewritten to Unicode properties (see regex.h); everything else is copied.
std::string Translate(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\' || i + 1 == pattern.size()) {
      if (c == '[') in_class = true;
      if (c == ']') in_class = false;
      out += c;
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's' || escaped == 'S') {
      out += escaped == 's' ? "\\p{White_Space}" : "\\P{White_Space}";
    } else if (escaped == 'w') {
      out += absl::StrCat(in_class ? "" : "[", kWord, in_class ? "" : "]");
    } else if (escaped == 'W' && !in_class) {
      out += absl::StrCat("[^", kWord, "]");
    } else {
      out += c;
      out += escaped;
    }
  }
  return out;
}

std::string ErrorText(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

void Regex::Free::operator()(pcre2_code* p) const { pcre2_code_free(p); }
void Regex::Matcher::Free::operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
void Regex::Matcher::Free::operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
void Regex::Matcher::Free::operator()(pcre2_jit_stack* p) const { pcre2_jit_stack_free(p); }

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern, Syntax syntax) {
  RETURN_IF_ERROR(Annotate(CheckUtf8(pattern), "regular expression"));
  const bool literal = syntax == Syntax::kLiteral;
  const std::string translated = literal ? std::string(pattern) : Translate(pattern);
  const uint32_t options =
      PCRE2_UTF | PCRE2_NO_UTF_CHECK |
      (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Regex regex;
  regex.pattern_ = pattern;
  regex.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()),
                                  translated.size(), options, &error, &offset, nullptr));
  if (regex.code_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("invalid regular expression: ", ErrorText(error),
                                                   " at offset ", offset, " of ", translated));
  }
  // Where the compiler to machine code is not available, pcre2_match interprets.
  (void)pcre2_jit_compile(regex.code_.get(), PCRE2_JIT_COMPLETE);
  return regex;
}

Regex::Matcher::Matcher(const Regex& regex)
    : regex_(regex),
      data_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)) {}

absl::StatusOr<std::optional<TextRange>> Regex::Matcher::Next(std::string_view text, size_t from) {
  constexpr uint32_t kOptions = PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY;
  const auto match = [&](uint32_t options) {
    return pcre2_match(regex_.code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                       from, options, data_.get(), context_.get());
  };
  int found = match(kOptions);
  if (found == PCRE2_ERROR_JIT_STACKLIMIT && stack_ == nullptr) {
    stack_.reset(pcre2_jit_stack_create(kFirstJitStackBytes, kLastJitStackBytes, nullptr));
    pcre2_jit_stack_assign(context_.get(), nullptr, stack_.get());
    found = match(kOptions);
  }
  if (found == PCRE2_ERROR_JIT_STACKLIMIT) {  // the interpreter keeps its state on the heap
    found = match(kOptions | PCRE2_NO_JIT);
  }
  if (found == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (found < 0) {
    return absl::ResourceExhaustedError(
        absl::StrCat("regular expression gave up: ", ErrorText(found), " at offset ", from, ": ",
                     regex_.pattern_));
  }
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data_.get());
  return TextRange{offsets[0], offsets[1]};
}

}  // namespace assay
