// GPT-2's spelling of bytes as printable characters: 0x20 is written U+0120, 0xC3 is U+00C3
// (encoder.py of GPT-2). Thread rule: free functions, thread-safe.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace assay {

void AppendByteLevel(std::string_view bytes, std::string* out);
// nullopt when a character stands for no byte.
std::optional<std::string> DecodeByteLevel(std::string_view text);

}  // namespace assay
