#include "tests/fuzz/hostile/mutations.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

namespace assay {
namespace {

using nlohmann::json;

constexpr size_t kHeader = 4096;
constexpr uint64_t kLengths[] = {0,
                                 1,
                                 2,
                                 0x7fffffff,
                                 0x80000000,
                                 0xffffffff,
                                 uint64_t{1} << 32,
                                 uint64_t{1} << 40,
                                 uint64_t{1} << 61,
                                 uint64_t{1} << 62,
                                 uint64_t{1} << 63,
                                 ~uint64_t{0}};

std::string Dump(const json& value) {
  return value.dump(-1, ' ', false, json::error_handler_t::replace);
}

void Collect(json& value, std::vector<json*>& out) {
  if (out.size() > 20000) return;
  out.push_back(&value);
  if (value.is_structured())
    for (json& child : value) Collect(child, out);
}

}  // namespace

size_t Mutations::Place(size_t size) {
  if (size == 0) return 0;
  const uint64_t where = Draw(4);
  if (where < 2) return Draw(size);
  return Draw(std::min(size, where == 2 ? size_t{64} : kHeader));
}

std::string Mutations::ChangeBytes(std::string bytes) {
  if (bytes.empty()) return std::string(1, static_cast<char>(random_()));
  const size_t at = Place(bytes.size());
  const size_t length = std::min(bytes.size() - at, size_t{1} + Draw(64));
  switch (Draw(8)) {
    case 0:
      bytes.resize(Draw(2) == 0 ? at : Draw(bytes.size()));
      break;
    case 1:
      bytes.insert(Place(bytes.size()), bytes.substr(at, length));
      break;
    case 2:
      bytes.erase(at, length);
      break;
    case 3:
      std::fill_n(bytes.begin() + static_cast<ptrdiff_t>(at), length,
                  static_cast<char>(Draw(2) == 0 ? 0 : 0xff));
      break;
    case 4:
    case 5: {  // a length or an offset, of four or eight bytes
      const uint64_t value =
          Draw(3) == 0 ? bytes.size() + Draw(3) - 1 : kLengths[Draw(std::size(kLengths))];
      std::memcpy(bytes.data() + at, &value, std::min(bytes.size() - at, size_t{4} << Draw(2)));
      break;
    }
    case 6:
      bytes[at] = static_cast<char>(random_());
      break;
    default:
      for (uint64_t bits = 1 + Draw(8); bits > 0; --bits)
        bytes[Place(bytes.size())] ^= static_cast<char>(1 << Draw(8));
  }
  return bytes;
}

json Mutations::OddValue(const json& old) {
  const json odd[] = {nullptr,
                      true,
                      "",
                      std::string(300, 'x'),
                      "\xef\xbf\xbd..",
                      json::array(),
                      json::object(),
                      json::array({old, old}),
                      json{{"x", old}},
                      -1,
                      0,
                      1,
                      0.5,
                      1e308};
  const uint64_t which = Draw(std::size(odd) + 6);
  if (which < std::size(odd)) return odd[which];
  return kLengths[Draw(std::size(kLengths))];
}

void Mutations::ChangeValue(json& value) {
  const uint64_t what = Draw(6);
  if (value.is_number_integer() && what < 3) {
    value = value.get<int64_t>() + static_cast<int64_t>(Draw(9)) - 4;
  } else if (value.is_string() && what < 2) {
    std::string text = value.get<std::string>();
    text.insert(Draw(text.size() + 1), 1, static_cast<char>(Draw(128)));
    value = text;
  } else if (value.is_structured() && !value.empty() && what < 4) {
    auto child = std::next(value.begin(), static_cast<ptrdiff_t>(Draw(value.size())));
    if (what < 2) {
      value.erase(child);
    } else {
      json& other = *std::next(value.begin(), static_cast<ptrdiff_t>(Draw(value.size())));
      std::swap(*child, other);
    }
  } else {
    value = OddValue(value);
  }
}

std::string Mutations::ChangeJson(std::string text) {
  json all = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (all.is_discarded() || Draw(5) == 0) return ChangeBytes(std::move(text));
  std::vector<json*> values;
  Collect(all, values);
  // Half of the time near the top, where the keys have a meaning.
  const size_t near = Draw(2) == 0 ? std::min<size_t>(values.size(), 40) : values.size();
  json& chosen = *values[Draw(near)];
  if (Draw(8) != 0 || !chosen.is_object() || chosen.empty()) {
    ChangeValue(chosen);
    return Dump(all);
  }
  // A key given twice, which no json object holds: in the text.
  const auto child = std::next(chosen.begin(), static_cast<ptrdiff_t>(Draw(chosen.size())));
  const std::string key = Dump(child.key()) + ":";
  const std::string twice = key + Dump(OddValue(*child)) + "," + key;
  text = Dump(all);
  const size_t at = text.find(key);
  return at == std::string::npos ? text : text.replace(at, key.size(), twice);
}

std::string Mutations::ChangeSafetensors(std::string bytes) {
  uint64_t length = 0;
  if (bytes.size() < sizeof(length) || Draw(2) == 0) return ChangeBytes(std::move(bytes));
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > bytes.size() - sizeof(length)) return ChangeBytes(std::move(bytes));
  const std::string header = ChangeJson(bytes.substr(sizeof(length), length));
  const std::string data = bytes.substr(sizeof(length) + length);
  length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data;
}

std::string Mutations::Apply(const std::string& name, std::string bytes) {
  for (uint64_t left = 1 + Draw(3); left > 0; --left) {
    if (name.ends_with(".json")) {
      bytes = ChangeJson(std::move(bytes));
    } else if (name.ends_with(".safetensors")) {
      bytes = ChangeSafetensors(std::move(bytes));
    } else {
      bytes = ChangeBytes(std::move(bytes));
    }
  }
  return bytes;
}

}  // namespace assay
