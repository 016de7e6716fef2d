#include "engine/lifecycle/npy.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace assay {
namespace {

constexpr uint64_t kMaxElements = uint64_t{1} << 26;
constexpr size_t kMaxHeader = 1 << 16;

absl::Status Wrong(const std::string& origin, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(origin, ": not a .npy file of token ids: ", what));
}

template <typename T>
T ReadLittleEndian(std::string_view bytes, size_t at) {  // the hosts of this project are
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// What follows "'key':" in the header's dictionary, up to its end: a text, a tuple or a word.
std::optional<std::string_view> ValueOf(std::string_view header, const std::string& key) {
  const size_t at = header.find(absl::StrCat("'", key, "':"));
  if (at == std::string_view::npos) return std::nullopt;
  std::string_view value = header.substr(at + key.size() + 3);
  value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
  if (value.empty()) return std::nullopt;
  if (value.front() == '\'' || value.front() == '(') {
    const size_t end = value.find(value.front() == '(' ? ')' : '\'', 1);
    if (end == std::string_view::npos) return std::nullopt;
    return value.substr(1, end - 1);
  }
  return value.substr(0, value.find_first_of(",}"));
}

std::vector<std::string> Parts(std::string_view tuple) {
  return absl::StrSplit(std::string(tuple), ',', absl::SkipWhitespace());
}

struct Layout {
  size_t element_bytes = 0;
  uint64_t rows = 1, columns = 0;
};

absl::StatusOr<Layout> ParseHeader(std::string_view header, const std::string& origin) {
  const auto descr = ValueOf(header, "descr"), order = ValueOf(header, "fortran_order"),
             shape = ValueOf(header, "shape");
  if (!descr || !order || !shape) {
    return Wrong(origin, "the header lacks 'descr', 'fortran_order' or 'shape'");
  }
  Layout layout;
  layout.element_bytes = *descr == "<i4" ? 4 : *descr == "<i8" ? 8 : 0;
  if (layout.element_bytes == 0) {
    return Wrong(origin, absl::StrCat("expected int32 or int64 ('<i4', '<i8'): descr='",
                                      absl::CHexEscape(std::string(descr->substr(0, 40))), "'"));
  }
  if (*order != "False") return Wrong(origin, "expected C order: fortran_order is not False");
  std::vector<uint64_t> dimensions;
  for (const std::string& part : Parts(*shape)) {
    uint64_t dimension = 0;
    if (!absl::SimpleAtoi(part, &dimension) || dimension > kMaxElements) {
      return Wrong(origin, absl::StrCat("bad dimension: shape=(",
                                        absl::CHexEscape(std::string(shape->substr(0, 40))), ")"));
    }
    dimensions.push_back(dimension);
  }
  if (dimensions.empty() || dimensions.size() > 2) {
    return Wrong(origin,
                 absl::StrCat("expected shape [n, t] or [t]: dimensions=", dimensions.size()));
  }
  layout.columns = dimensions.back();
  if (dimensions.size() == 2) layout.rows = dimensions.front();
  if (layout.rows * layout.columns > kMaxElements) {
    return Wrong(origin, absl::StrCat("too large: elements=", layout.rows * layout.columns,
                                      " limit=", kMaxElements));
  }
  return layout;
}

// Where the data begins, and the header before it.
absl::StatusOr<std::pair<size_t, std::string_view>> FindHeader(std::string_view bytes,
                                                               const std::string& origin) {
  if (bytes.size() < 10 || bytes.substr(0, kNpyMagic.size()) != kNpyMagic) {
    return Wrong(origin, absl::StrCat("no magic at its beginning: bytes=", bytes.size()));
  }
  const auto major = static_cast<unsigned char>(bytes[6]);
  if (major < 1 || major > 3) {
    return Wrong(origin, absl::StrCat("version=", int{major}, " expected 1 to 3"));
  }
  const size_t prefix = major == 1 ? 10 : 12;
  if (bytes.size() < prefix) return Wrong(origin, "truncated header");
  const size_t length =
      major == 1 ? ReadLittleEndian<uint16_t>(bytes, 8) : ReadLittleEndian<uint32_t>(bytes, 8);
  if (length > kMaxHeader || bytes.size() < prefix + length) {
    return Wrong(origin, absl::StrCat("truncated header: header=", length,
                                      " bytes=", bytes.size() - prefix));
  }
  return std::pair(prefix + length, bytes.substr(prefix, length));
}

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> ReadNpyRows(std::string_view bytes,
                                                              const std::string& origin) {
  ASSIGN_OR_RETURN(const auto found, FindHeader(bytes, origin));
  const auto [begin, header] = found;
  ASSIGN_OR_RETURN(const Layout layout, ParseHeader(header, origin));
  const uint64_t expected = layout.rows * layout.columns * layout.element_bytes;
  if (bytes.size() - begin != expected) {
    return Wrong(origin, absl::StrCat("its data is not what the shape says: bytes=",
                                      bytes.size() - begin, " expected=", expected));
  }
  std::vector<std::vector<int32_t>> rows;
  if (expected == 0) return rows;
  rows.resize(layout.rows);
  size_t at = begin;
  for (uint64_t r = 0; r < layout.rows; ++r) {
    rows[r].reserve(layout.columns);
    for (uint64_t c = 0; c < layout.columns; ++c, at += layout.element_bytes) {
      const int64_t id = layout.element_bytes == 4 ? ReadLittleEndian<int32_t>(bytes, at)
                                                   : ReadLittleEndian<int64_t>(bytes, at);
      if (id < 0 || id > std::numeric_limits<int32_t>::max()) {
        return Wrong(origin, absl::StrCat("no token id: row=", r, " column=", c, " value=", id));
      }
      rows[r].push_back(static_cast<int32_t>(id));
    }
  }
  return rows;
}

}  // namespace assay
