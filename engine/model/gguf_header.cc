#include "engine/model/gguf_header.h"

#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint_text.h"

namespace assay {
namespace {

constexpr uint64_t kMaxNameBytes =
    65535;  // of a key or a tensor's name; the specification's limit for keys
// Over all arrays of a file. The largest vocabularies in use (256k tokens) come to 1.5 M with
// scores, types and merges.
constexpr uint64_t kMaxArrayElements = uint64_t{1} << 23;

enum ValueType : uint32_t {
  kU8 = 0,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

// Reads forward through the file; what a read was for goes into its error.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }

  template <typename T>
  absl::Status Read(const std::string& what, T& value) {
    if (remaining() < sizeof(T)) return Truncated(what, sizeof(T));
    std::memcpy(&value, bytes_.data() + offset_, sizeof(T));
    offset_ += sizeof(T);
    return absl::OkStatus();
  }

  // The string's bytes, in place.
  absl::Status ReadString(const std::string& what, std::string_view& value) {
    uint64_t length = 0;
    RETURN_IF_ERROR(Read(what, length));
    if (length > remaining()) return Truncated(what, length);
    value = {reinterpret_cast<const char*>(bytes_.data()) + offset_, static_cast<size_t>(length)};
    offset_ += length;
    return absl::OkStatus();
  }

  absl::Status Truncated(const std::string& what, uint64_t needed) const {
    return absl::DataLossError(absl::StrCat("file ends inside ", what, ": offset=", offset_,
                                            " needed=", needed, " remaining=", remaining()));
  }

 private:
  std::span<const std::byte> bytes_;
  uint64_t offset_ = 0;
};

absl::Status CheckText(const std::string& what, std::string_view text) {
  const size_t bad = FindInvalidUtf8(text);
  if (bad == std::string_view::npos) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " is not UTF-8: value=", Quoted(text), " offset=", bad));
}

absl::Status ReadName(const std::string& what, Cursor& in, std::string& name) {
  std::string_view text;
  RETURN_IF_ERROR(in.ReadString(what, text));
  if (text.empty() || text.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " has an unusable length: value=", Quoted(text), " bytes=", text.size(),
                     " limit=", kMaxNameBytes));
  }
  RETURN_IF_ERROR(CheckText(what, text));
  name = std::string(text);
  return absl::OkStatus();
}

template <typename T>
absl::Status ReadNumber(const std::string& what, Cursor& in, nlohmann::json& value) {
  T number{};
  RETURN_IF_ERROR(in.Read(what, number));
  value = number;
  return absl::OkStatus();
}

absl::Status ReadBool(const std::string& what, Cursor& in, nlohmann::json& value) {
  uint8_t byte = 0;
  RETURN_IF_ERROR(in.Read(what, byte));
  if (byte > 1)
    return absl::InvalidArgumentError(absl::StrCat(what, " is not a boolean: value=", byte));
  value = byte == 1;
  return absl::OkStatus();
}

absl::Status ReadText(const std::string& what, Cursor& in, nlohmann::json& value) {
  std::string_view text;
  RETURN_IF_ERROR(in.ReadString(what, text));
  RETURN_IF_ERROR(CheckText(what, text));
  value = text;
  return absl::OkStatus();
}

using ReadFn = absl::Status (*)(const std::string& what, Cursor& in, nlohmann::json& value);
struct ScalarType {
  ReadFn read = nullptr;
  uint64_t min_bytes = 0;  // in the file
};

ScalarType FindScalarType(uint32_t type) {
  switch (type) {
    case kU8:
      return {ReadNumber<uint8_t>, 1};
    case kI8:
      return {ReadNumber<int8_t>, 1};
    case kU16:
      return {ReadNumber<uint16_t>, 2};
    case kI16:
      return {ReadNumber<int16_t>, 2};
    case kU32:
      return {ReadNumber<uint32_t>, 4};
    case kI32:
      return {ReadNumber<int32_t>, 4};
    case kF32:
      return {ReadNumber<float>, 4};
    case kBool:
      return {ReadBool, 1};
    case kString:
      return {ReadText, 8};
    case kU64:
      return {ReadNumber<uint64_t>, 8};
    case kI64:
      return {ReadNumber<int64_t>, 8};
    case kF64:
      return {ReadNumber<double>, 8};
    default:
      return {};
  }
}

absl::Status UnknownType(const std::string& what, uint32_t type) {
  return absl::InvalidArgumentError(
      absl::StrCat(what, " has an unknown or nested value type: type=", type));
}

absl::Status ReadArray(const std::string& what, Cursor& in, uint64_t& budget,
                       nlohmann::json& value) {
  uint32_t type = 0;
  uint64_t count = 0;
  RETURN_IF_ERROR(in.Read(what, type));
  RETURN_IF_ERROR(in.Read(what, count));
  const ScalarType scalar = FindScalarType(type);
  if (scalar.read == nullptr) return UnknownType(what, type);
  if (count > in.remaining() / scalar.min_bytes) return in.Truncated(what, count);
  if (count > budget) {
    return absl::InvalidArgumentError(absl::StrCat(
        what, " makes the file's arrays too long: elements=", count, " limit=", kMaxArrayElements));
  }
  budget -= count;
  value = nlohmann::json::array_t(count);
  for (nlohmann::json& element : value) RETURN_IF_ERROR(scalar.read(what, in, element));
  return absl::OkStatus();
}

absl::Status ReadMetadata(Cursor& in, uint64_t count, nlohmann::json& metadata) {
  uint64_t array_budget = kMaxArrayElements;
  for (uint64_t i = 0; i < count; ++i) {
    std::string key;
    uint32_t type = 0;
    RETURN_IF_ERROR(ReadName(absl::StrCat("metadata key ", i), in, key));
    const std::string what = absl::StrCat("metadata ", Quoted(key));
    RETURN_IF_ERROR(in.Read(what, type));
    const auto [place, fresh] = metadata.emplace(key, nullptr);
    if (!fresh) return absl::InvalidArgumentError(absl::StrCat(what, " occurs twice"));
    const ScalarType scalar = FindScalarType(type);
    if (scalar.read != nullptr) {
      RETURN_IF_ERROR(scalar.read(what, in, *place));
    } else if (type == kArray) {
      RETURN_IF_ERROR(ReadArray(what, in, array_budget, *place));
    } else {
      return UnknownType(what, type);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadTensor(uint64_t index, Cursor& in, GgufTensor& tensor) {
  RETURN_IF_ERROR(ReadName(absl::StrCat("name of tensor ", index), in, tensor.name));
  const std::string what = absl::StrCat("tensor ", Quoted(tensor.name));
  uint32_t rank = 0;
  RETURN_IF_ERROR(in.Read(what, rank));
  if (rank > 4) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " has more than 4 dimensions: rank=", rank));
  }
  tensor.dims.resize(rank);
  for (uint64_t& d : tensor.dims) RETURN_IF_ERROR(in.Read(what, d));
  RETURN_IF_ERROR(in.Read(what, tensor.type));
  return in.Read(what, tensor.offset);
}

absl::Status ReadVersion(Cursor& in, GgufHeader& header) {
  char magic[4];
  RETURN_IF_ERROR(in.Read("magic", magic));
  if (std::string_view(magic, sizeof magic) != "GGUF") {
    return absl::InvalidArgumentError(
        absl::StrCat("not a GGUF file: magic=", Quoted({magic, sizeof magic})));
  }
  RETURN_IF_ERROR(in.Read("version", header.version));
  if (header.version == 2 || header.version == 3) return absl::OkStatus();
  const bool swapped = header.version != 0 && (header.version & 0xffff) == 0;
  return absl::InvalidArgumentError(absl::StrCat("unsupported GGUF version",
                                                 swapped ? " (a big-endian file?)" : "",
                                                 ": version=", header.version, " expected 2 or 3"));
}

absl::Status ReadAlignment(GgufHeader& header) {
  const auto found = header.metadata.find("general.alignment");
  if (found == header.metadata.end()) return absl::OkStatus();
  const bool whole = found->is_number_unsigned();
  header.alignment = whole ? found->get<uint64_t>() : 0;
  if (std::has_single_bit(header.alignment) && header.alignment <= (uint64_t{1} << 31))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("metadata 'general.alignment' is not a power of two up to 2^31: value=",
                   whole ? absl::StrCat(header.alignment) : found->type_name()));
}

}  // namespace

absl::StatusOr<GgufHeader> ParseGgufHeader(std::span<const std::byte> file) {
  constexpr uint64_t kMinTensorBytes = 8 + 4 + 4 + 8, kMinPairBytes = 8 + 4 + 1;
  Cursor in(file);
  GgufHeader header;
  uint64_t num_tensors = 0, num_pairs = 0;
  RETURN_IF_ERROR(ReadVersion(in, header));
  RETURN_IF_ERROR(in.Read("number of tensors", num_tensors));
  RETURN_IF_ERROR(in.Read("number of metadata pairs", num_pairs));
  if (num_pairs > in.remaining() / kMinPairBytes) return in.Truncated("metadata pairs", num_pairs);
  RETURN_IF_ERROR(ReadMetadata(in, num_pairs, header.metadata));
  RETURN_IF_ERROR(ReadAlignment(header));
  if (num_tensors > in.remaining() / kMinTensorBytes)
    return in.Truncated("tensor table", num_tensors);
  header.tensors.resize(num_tensors);
  for (uint64_t i = 0; i < num_tensors; ++i) RETURN_IF_ERROR(ReadTensor(i, in, header.tensors[i]));
  header.data_begin = (in.offset() + header.alignment - 1) / header.alignment * header.alignment;
  return header;
}

}  // namespace assay
