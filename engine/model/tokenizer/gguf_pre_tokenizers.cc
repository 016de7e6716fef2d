#include "engine/model/tokenizer/gguf_pre_tokenizers.h"

#include <algorithm>

#include "engine/model/tokenizer/pre_tokenizer.h"

namespace assay {
namespace {

using Patterns = std::span<const std::string_view>;

constexpr std::string_view kGpt2[] = {PreTokenizer::kGpt2Pattern};
constexpr std::string_view kDigitsThenGpt2[] = {R"(\p{N})", PreTokenizer::kGpt2Pattern};
constexpr std::string_view kFalcon[] = {R"([\p{P}\$\+<=>\^~\|`]+)", PreTokenizer::kGpt2Pattern,
                                        "[0-9][0-9][0-9]"};
constexpr std::string_view kDefault[] = {R"([\p{P}\$\+<=>\^~\|]+)", PreTokenizer::kGpt2Pattern,
                                         R"(\p{N}+)", "[0-9][0-9][0-9]"};
constexpr std::string_view kLlama3[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr std::string_view kQwen2[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr std::string_view kGpt4o[] = {
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
    R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr std::string_view kTekken[] = {
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
    R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr std::string_view kDeepSeekCoder[] = {
    R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)",
    R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)", R"(\p{N})"};
// DeepSeek LLM's second expression lists the cased letters of these scripts one by one (Georgian
// without Mkhedruli).
constexpr std::string_view kDeepSeekLlm[] = {
    R"([\r\n])",
    R"(\s?(?:(?![\x{10D0}-\x{10FF}])(?=[\p{Latin}\p{Greek}\p{Cyrillic}\p{Armenian}\p{Cherokee}\p{Coptic}\p{Glagolitic}\p{Georgian})"
    R"(\p{Deseret}\p{Osage}\p{Old_Hungarian}\p{Warang_Citi}\p{Adlam}\x{B5}\x{2102}-\x{214E}])[\p{Lu}\p{Ll}\p{Lt}])+)",
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)",
    R"(\s+$)",
    R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)",
    R"(\p{N}+)"};
constexpr std::string_view kDeepSeek3[] = {
    R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|)"
    R"( ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr std::string_view kBloom[] = {R"( ?[^(\s|.,!?…。，、।۔،)]+)"};
constexpr std::string_view kViking[] = {R"( ?[^(\s|.,!?…。，、।۔،)]+)", R"(\p{N})"};
constexpr std::string_view kChatGlm4[] = {
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};

struct Entry {
  std::string_view name;
  GgufPreTokenizer value;
};

constexpr Entry kEntries[] = {
    {"default", {kDefault}},
    {"gpt-2", {kGpt2}},
    {"phi-2", {kGpt2}},
    {"mpt", {kGpt2}},
    {"olmo", {kGpt2}},
    {"jais", {kGpt2}},
    {"gigachat", {kGpt2}},
    {"roberta-bpe", {kGpt2}},
    {"jina-es", {kGpt2}},
    {"jina-de", {kGpt2}},
    {"jina-v1-en", {kGpt2}},
    {"jina-v2-es", {kGpt2}},
    {"jina-v2-de", {kGpt2}},
    {"jina-v2-code", {kGpt2}},
    {"smollm", {kDigitsThenGpt2}},
    {"starcoder", {kDigitsThenGpt2}},
    {"refact", {kDigitsThenGpt2}},
    {"command-r", {kDigitsThenGpt2}},
    {"codeshell", {kDigitsThenGpt2}},
    {"exaone", {kDigitsThenGpt2}},
    {"minerva-7b", {kDigitsThenGpt2}},
    {"falcon", {kFalcon}},
    {"llama-bpe", {kLlama3, true, true}},
    {"llama3", {kLlama3, true, true}},
    {"llama-v3", {kLlama3, true, true}},
    {"falcon3", {kLlama3, true, true}},
    {"dbrx", {kLlama3}},
    {"smaug-bpe", {kLlama3}},
    {"chatglm-bpe", {kChatGlm4}},
    {"qwen2", {kQwen2}},
    {"stablelm2", {kQwen2}},
    {"megrez", {kQwen2}},
    {"deepseek-r1-qwen", {kQwen2}},
    {"gpt-4o", {kGpt4o}},
    {"llama4", {kGpt4o}},
    {"tekken", {kTekken, true, true}},
    {"deepseek-coder", {kDeepSeekCoder}},
    {"deepseek-llm", {kDeepSeekLlm}},
    {"deepseek-v3", {kDeepSeek3}},
    {"bloom", {kBloom}},
    {"poro-chat", {kBloom}},
    {"gpt3-finnish", {kBloom}},
    {"viking", {kViking}},
};

}  // namespace

std::optional<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view name) {
  const auto* const found = std::find_if(std::begin(kEntries), std::end(kEntries),
                                         [&](const Entry& entry) { return entry.name == name; });
  if (found == std::end(kEntries)) return std::nullopt;
  return found->value;
}

}  // namespace assay
