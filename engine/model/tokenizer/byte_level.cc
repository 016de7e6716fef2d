#include "engine/model/tokenizer/byte_level.h"

#include <array>

#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

constexpr int kLastCharacter = 0x143;  // 256 + the 68 bytes that are not printable, less one

struct Table {
  std::array<std::string, 256> characters;
  std::array<int, kLastCharacter + 1> bytes;  // -1: stands for no byte
};

bool IsPrintable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

const Table& GetTable() {
  static const Table* const table = [] {
    auto* result = new Table;
    result->bytes.fill(-1);
    CodePoint next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const CodePoint character = IsPrintable(byte) ? byte : next++;
      AppendCodePoint(character, &result->characters[byte]);
      result->bytes[character] = byte;
    }
    return result;
  }();
  return *table;
}

}  // namespace

void AppendByteLevel(std::string_view bytes, std::string* out) {
  const Table& table = GetTable();
  for (const char byte : bytes) *out += table.characters[static_cast<unsigned char>(byte)];
}

std::optional<std::string> DecodeByteLevel(std::string_view text) {
  const Table& table = GetTable();
  std::string out;
  bool complete = true;
  ForEachCodePoint(text, [&](CodePoint c, size_t, size_t) {
    const int byte = c <= kLastCharacter ? table.bytes[c] : -1;
    complete &= byte >= 0;
    out += static_cast<char>(byte);
  });
  if (!complete) return std::nullopt;
  return out;
}

}  // namespace assay
