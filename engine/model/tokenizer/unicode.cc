#include "engine/model/tokenizer/unicode.h"

#include <unicode/brkiter.h>
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/stringpiece.h>
#include <unicode/uchar.h>
#include <unicode/uscript.h>
#include <unicode/utext.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr CodePoint kCapitalDottedI = 0x130;  // the only one whose lower case has two code points

const uint8_t* Bytes(std::string_view text) {
  return reinterpret_cast<const uint8_t*>(text.data());
}

const icu::Normalizer2* GetNormalizer(NormalForm form) {
  UErrorCode error = U_ZERO_ERROR;
  switch (form) {
    case NormalForm::kNfc:
      return icu::Normalizer2::getNFCInstance(error);
    case NormalForm::kNfd:
      return icu::Normalizer2::getNFDInstance(error);
    case NormalForm::kNfkc:
      return icu::Normalizer2::getNFKCInstance(error);
    case NormalForm::kNfkd:
      return icu::Normalizer2::getNFKDInstance(error);
  }
  return nullptr;
}

}  // namespace

absl::Status CheckUtf8(std::string_view text) {
  const uint8_t* bytes = Bytes(text);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    CodePoint c;
    U8_NEXT(bytes, at, text.size(), c);
    if (c < 0) {
      return absl::InvalidArgumentError(absl::StrCat("text is not UTF-8: byte 0x",
                                                     absl::Hex(bytes[begin], absl::kZeroPad2),
                                                     " at offset ", begin, " of ", text.size()));
    }
  }
  return absl::OkStatus();
}

size_t CountCodePoints(std::string_view text) {
  size_t count = 0;
  for (const char byte : text) count += (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
  return count;
}

void AppendCodePoint(CodePoint code_point, std::string* out) {
  char buffer[U8_MAX_LENGTH];
  size_t length = 0;
  U8_APPEND_UNSAFE(buffer, length, code_point);
  out->append(buffer, length);
}

CodePoint NextCodePoint(std::string_view text, size_t* at) {
  CodePoint c;
  U8_NEXT_OR_FFFD(Bytes(text), *at, text.size(), c);
  return c;
}

CodePoint PreviousCodePoint(std::string_view text, size_t* at) {
  auto end = static_cast<int32_t>(*at);  // Encode limits texts to 2^28 bytes
  CodePoint c;
  U8_PREV_OR_FFFD(Bytes(text), 0, end, c);
  *at = static_cast<size_t>(end);
  return c;
}

std::map<std::string, int64_t> CountScripts(std::string_view text) {
  std::map<UScriptCode, int64_t> counts;
  ForEachCodePoint(text, [&](CodePoint c, size_t, size_t) {
    if ((U_GET_GC_MASK(c) & U_GC_L_MASK) == 0) return;
    UErrorCode error = U_ZERO_ERROR;
    ++counts[uscript_getScript(c, &error)];
  });
  std::map<std::string, int64_t> named;
  for (const auto& [script, count] : counts) {
    const char* name = uscript_getName(script);
    named[name == nullptr ? "Unknown" : name] += count;
  }
  return named;
}

std::vector<size_t> ClusterEnds(std::string_view text) {
  UErrorCode error = U_ZERO_ERROR;
  const std::unique_ptr<icu::BreakIterator> clusters(
      icu::BreakIterator::createCharacterInstance(icu::Locale::getRoot(), error));
  UText utext = UTEXT_INITIALIZER;
  utext_openUTF8(&utext, text.data(), static_cast<int64_t>(text.size()), &error);
  std::vector<size_t> ends;
  if (U_SUCCESS(error)) {
    clusters->setText(&utext, error);
    for (int32_t end = clusters->next(); end != icu::BreakIterator::DONE; end = clusters->next()) {
      ends.push_back(static_cast<size_t>(end));
    }
  }
  utext_close(&utext);
  if (ends.empty() && !text.empty()) ends.push_back(text.size());
  return ends;
}

bool IsWhitespace(CodePoint c) { return u_isUWhiteSpace(c); }
bool IsNumeric(CodePoint c) { return (U_GET_GC_MASK(c) & U_GC_N_MASK) != 0; }
bool IsPunctuation(CodePoint c) {
  constexpr uint32_t kSymbols = U_GC_S_MASK;
  const uint32_t category = U_GET_GC_MASK(c);
  return (category & U_GC_P_MASK) != 0 || (c < 0x80 && (category & kSymbols) != 0);
}
bool IsWordCharacter(CodePoint c) {
  constexpr uint32_t kCategories = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_isUAlphabetic(c) || (U_GET_GC_MASK(c) & kCategories) != 0 ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}
bool IsCombiningMark(CodePoint c) { return (U_GET_GC_MASK(c) & U_GC_M_MASK) != 0; }
bool IsNonspacingMark(CodePoint c) { return (U_GET_GC_MASK(c) & U_GC_MN_MASK) != 0; }
bool IsControlOrUnassignable(CodePoint c) {
  constexpr uint32_t kCategories = U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK | U_GC_CS_MASK;
  return (U_GET_GC_MASK(c) & kCategories) != 0;
}

bool IsCjkIdeograph(CodePoint c) {
  switch (ublock_getCode(c)) {
    case UBLOCK_CJK_UNIFIED_IDEOGRAPHS:
    case UBLOCK_CJK_UNIFIED_IDEOGRAPHS_EXTENSION_A:
    case UBLOCK_CJK_UNIFIED_IDEOGRAPHS_EXTENSION_B:
    case UBLOCK_CJK_UNIFIED_IDEOGRAPHS_EXTENSION_C:
    case UBLOCK_CJK_UNIFIED_IDEOGRAPHS_EXTENSION_D:
    case UBLOCK_CJK_COMPATIBILITY_IDEOGRAPHS:
    case UBLOCK_CJK_COMPATIBILITY_IDEOGRAPHS_SUPPLEMENT:
      return true;
    case UBLOCK_CJK_UNIFIED_IDEOGRAPHS_EXTENSION_E:
      // Hugging Face's normalizer begins this block at U+2B920 instead of U+2B820; vocabularies
      // were trained with it.
      return c >= 0x2B920;
    default:
      return false;
  }
}

std::string_view TrimWhitespace(std::string_view text, bool left, bool right) {
  size_t begin = text.size(), end = 0;
  ForEachCodePoint(text, [&](CodePoint c, size_t at, size_t to) {
    if (IsWhitespace(c)) return;
    begin = std::min(begin, at);
    end = to;
  });
  if (!left) begin = 0;
  if (!right) end = text.size();
  return begin < end ? text.substr(begin, end - begin) : std::string_view();
}

std::string Printable(std::string_view text) {
  constexpr size_t kLimit = 80;
  const std::string_view shown = text.substr(0, kLimit);
  return absl::StrCat("'", absl::Utf8SafeCHexEscape({shown.data(), shown.size()}), "'",
                      text.size() > kLimit ? "..." : "");
}

std::string Normalize(NormalForm form, std::string_view text) {
  std::string out;
  out.reserve(text.size());
  icu::StringByteSink<std::string> sink(&out);
  UErrorCode error = U_ZERO_ERROR;
  GetNormalizer(form)->normalizeUTF8(
      0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, nullptr, error);
  return out;
}

std::string Lowercase(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  ForEachCodePoint(text, [&](CodePoint c, size_t, size_t) {
    if (c == kCapitalDottedI) {
      out += "i\xCC\x87";  // i and U+0307
    } else {
      AppendCodePoint(u_tolower(c), &out);
    }
  });
  return out;
}

void Utf8Sink::Append(std::string_view bytes, std::string* out) {
  pending_ += bytes;
  const uint8_t* data = Bytes(pending_);
  // Signed: ICU asks whether complete - 2 is below 0.
  auto complete = static_cast<int64_t>(pending_.size());
  U8_TRUNCATE_IF_INCOMPLETE(data, int64_t{0}, complete);
  for (int64_t at = 0; at < complete;) {
    const int64_t begin = at;
    CodePoint c;
    U8_NEXT(data, at, complete, c);
    out->append(c < 0 ? kReplacement
                      : std::string_view(pending_).substr(static_cast<size_t>(begin),
                                                          static_cast<size_t>(at - begin)));
  }
  pending_.erase(0, static_cast<size_t>(complete));
}

void Utf8Sink::Flush(std::string* out) {
  // What is held back is the beginning of one sequence: one maximal subpart.
  if (!pending_.empty()) out->append(kReplacement);
  pending_.clear();
}

}  // namespace assay
