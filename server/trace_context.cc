#include "server/trace_context.h"

#include <charconv>
#include <cstdint>
#include <optional>

namespace assay {
namespace {

// 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
constexpr size_t kTrace = 3, kParent = 36, kFlags = 53, kLength = 55;

// All of `digits`, 1 to 16 of them, lower case as the format demands.
std::optional<uint64_t> ParseHex(std::string_view digits) {
  if (digits.find_first_not_of("0123456789abcdef") != std::string_view::npos) return std::nullopt;
  uint64_t value = 0;
  std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
  return value;
}

}  // namespace

TraceId ParseTraceparent(std::string_view header) {
  if (header.size() < kLength) return {};
  for (const size_t dash : {kTrace, kParent, kFlags}) {
    if (header[dash - 1] != '-') return {};
  }
  const auto version = ParseHex(header.substr(0, 2));
  const auto high = ParseHex(header.substr(kTrace, 16));
  const auto low = ParseHex(header.substr(kTrace + 16, 16));
  const auto parent = ParseHex(header.substr(kParent, 16));
  const auto flags = ParseHex(header.substr(kFlags, 2));
  if (!version || !high || !low || !parent || !flags) return {};
  // Later versions may go on after another dash.
  const bool whole = header.size() == kLength || (*version > 0 && header[kLength] == '-');
  const bool sampled = (*flags & 1) != 0;
  if (*version == 0xff || *parent == 0 || !whole || !sampled) return {};
  return {*high, *low};
}

TraceId TraceOf(const grpc::ServerContextBase& rpc) {
  const auto [first, last] = rpc.client_metadata().equal_range("traceparent");
  if (first == last || std::next(first) != last) return {};
  return ParseTraceparent({first->second.data(), first->second.size()});
}

}  // namespace assay
