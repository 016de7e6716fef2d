#include "server/tensor_codec.h"

#include <bit>
#include <cstring>
#include <limits>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/float16.h"

namespace assay {
namespace {

static_assert(std::endian::native == std::endian::little, "the wire format is the host's");

constexpr int64_t kMaxElements = int64_t{1} << 40;  // far above any message

struct WireType {
  std::string_view name;
  int bytes;  // 0 = variable
};
constexpr WireType kWireTypes[] = {
    {"BOOL", 1}, {"UINT8", 1}, {"UINT16", 2}, {"UINT32", 4}, {"UINT64", 8},
    {"INT8", 1}, {"INT16", 2}, {"INT32", 4},  {"INT64", 8},  {"FP16", 2},
    {"BF16", 2}, {"FP32", 4},  {"FP64", 8},   {"BYTES", 0},
};

std::optional<int> BytesOfType(std::string_view datatype) {
  for (const WireType& type : kWireTypes) {
    if (type.name == datatype) return type.bytes;
  }
  return std::nullopt;
}

template <typename... Parts>
absl::Status Bad(const InputTensor& tensor, Parts&&... parts) {
  return absl::InvalidArgumentError(absl::StrCat("input '", tensor.name(), "': ", parts...));
}

absl::StatusOr<int64_t> CountElements(const InputTensor& tensor) {
  int64_t elements = 1;
  for (const int64_t dim : tensor.shape()) {
    if (dim < 0) {
      return Bad(tensor, "shape ", ShapeText(tensor.shape()), " has a negative dimension");
    }
    if (__builtin_mul_overflow(elements, dim, &elements) || elements > kMaxElements) {
      return Bad(tensor, "shape ", ShapeText(tensor.shape()), " has too many elements");
    }
  }
  return elements;
}

// How many values the typed field of this datatype holds; nullopt: the type has no such field.
std::optional<int64_t> TypedCount(const inference::InferTensorContents& c, std::string_view type) {
  if (type == "BOOL") return c.bool_contents_size();
  if (type == "INT8" || type == "INT16" || type == "INT32") return c.int_contents_size();
  if (type == "INT64") return c.int64_contents_size();
  if (type == "UINT8" || type == "UINT16" || type == "UINT32") return c.uint_contents_size();
  if (type == "UINT64") return c.uint64_contents_size();
  if (type == "FP32") return c.fp32_contents_size();
  if (type == "FP64") return c.fp64_contents_size();
  if (type == "BYTES") return c.bytes_contents_size();
  return std::nullopt;
}

absl::Status CheckTyped(const InputTensor& tensor, int64_t elements) {
  const std::optional<int64_t> count = TypedCount(tensor.contents(), tensor.datatype());
  if (!count) {
    return Bad(tensor, tensor.datatype(), " has no typed contents: send raw_input_contents");
  }
  if (*count != elements) {
    return Bad(tensor, "contents have ", *count, " values of type ", tensor.datatype(), ", shape ",
               ShapeText(tensor.shape()), " needs ", elements);
  }
  return absl::OkStatus();
}

absl::Status CheckRaw(const InputTensor& tensor, int64_t elements, const std::string& raw) {
  const int width = *BytesOfType(tensor.datatype());
  if (width == 0) return absl::OkStatus();  // BYTES: ReadBytes walks the lengths
  if (static_cast<int64_t>(raw.size()) != elements * width) {
    return Bad(tensor, "raw contents have ", raw.size(), " bytes, ", tensor.datatype(),
               " of shape ", ShapeText(tensor.shape()), " needs ", elements * width);
  }
  return absl::OkStatus();
}

template <typename T>
T Load(const std::string& raw, int64_t i) {
  T value;
  std::memcpy(&value, raw.data() + i * sizeof(T), sizeof(T));
  return value;
}

// raw as values of T, converted to Out.
template <typename T, typename Out, typename Convert>
std::vector<Out> Unpack(const InputView& input, Convert convert) {
  std::vector<Out> out(static_cast<size_t>(input.elements));
  for (int64_t i = 0; i < input.elements; ++i) out[i] = convert(Load<T>(*input.raw, i));
  return out;
}

template <typename Out, typename Field>
std::vector<Out> Copy(const Field& field) {
  std::vector<Out> out;
  out.reserve(field.size());
  for (const auto& value : field) out.push_back(static_cast<Out>(value));
  return out;
}

constexpr auto kToInt64 = [](auto v) { return static_cast<int64_t>(v); };
constexpr auto kToFloat = [](auto v) { return static_cast<float>(v); };

absl::Status CheckUnsigned(const InputTensor& tensor, std::span<const int64_t> values) {
  for (const int64_t v : values) {
    if (v < 0) return Bad(tensor, "a UINT64 value is above ", std::numeric_limits<int64_t>::max());
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShapeText(const google::protobuf::RepeatedField<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}

absl::StatusOr<std::vector<InputView>> CheckInputs(const inference::ModelInferRequest& request) {
  std::vector<InputView> out;
  std::set<std::string_view> names;
  int next_raw = 0;
  for (const InputTensor& tensor : request.inputs()) {
    if (!names.insert(tensor.name()).second) return Bad(tensor, "given twice");
    for (const char* shm : {"shared_memory_region", "shared_memory_offset"}) {
      if (tensor.parameters().contains(shm)) {
        return absl::UnimplementedError(
            absl::StrCat("input '", tensor.name(), "': shared memory is not supported"));
      }
    }
    if (!BytesOfType(tensor.datatype())) {
      return Bad(tensor, "unknown datatype '", tensor.datatype(), "'");
    }
    ASSIGN_OR_RETURN(const int64_t elements, CountElements(tensor));
    InputView view{&tensor, nullptr, elements};
    if (request.raw_input_contents_size() > 0) {
      if (tensor.has_contents()) {
        return absl::InvalidArgumentError(
            absl::StrCat("contents field must not be specified when using raw_input_contents for '",
                         tensor.name(), "' for model '", request.model_name(), "'"));
      }
      if (next_raw == request.raw_input_contents_size()) {
        return absl::InvalidArgumentError(absl::StrCat("unable to find data for input tensor '",
                                                       tensor.name(), "' for model '",
                                                       request.model_name(), "' in request."));
      }
      view.raw = &request.raw_input_contents(next_raw++);
      RETURN_IF_ERROR(CheckRaw(tensor, elements, *view.raw));
    } else {
      RETURN_IF_ERROR(CheckTyped(tensor, elements));
    }
    out.push_back(view);
  }
  if (next_raw != request.raw_input_contents_size()) {
    return absl::InvalidArgumentError(absl::StrCat("raw_input_contents has ",
                                                   request.raw_input_contents_size(),
                                                   " entries for ", next_raw, " inputs"));
  }
  return out;
}

absl::StatusOr<std::vector<std::string>> ReadBytes(const InputView& input) {
  const InputTensor& tensor = *input.tensor;
  if (tensor.datatype() != "BYTES") {
    return Bad(tensor, "expected datatype BYTES, found ", tensor.datatype());
  }
  if (input.raw == nullptr) return Copy<std::string>(tensor.contents().bytes_contents());
  std::vector<std::string> out;
  const std::string& raw = *input.raw;
  size_t at = 0;
  while (at < raw.size()) {
    if (static_cast<int64_t>(out.size()) == input.elements) {
      return Bad(tensor, "raw BYTES have more elements than shape ", ShapeText(tensor.shape()),
                 " needs, ", input.elements);
    }
    uint32_t length = 0;
    if (raw.size() - at < sizeof(length)) {
      return Bad(tensor, "raw BYTES end inside a length, at byte ", at, " of ", raw.size());
    }
    std::memcpy(&length, raw.data() + at, sizeof(length));
    at += sizeof(length);
    if (raw.size() - at < length) {
      return Bad(tensor, "element ", out.size(), " of raw BYTES has length ", length, ", ",
                 raw.size() - at, " bytes are left");
    }
    out.push_back(raw.substr(at, length));
    at += length;
  }
  if (static_cast<int64_t>(out.size()) != input.elements) {
    return Bad(tensor, "raw BYTES have ", out.size(), " elements, shape ",
               ShapeText(tensor.shape()), " needs ", input.elements);
  }
  return out;
}

absl::StatusOr<std::vector<int64_t>> ReadIntegers(const InputView& input) {
  const InputTensor& tensor = *input.tensor;
  const inference::InferTensorContents& c = tensor.contents();
  const std::string& type = tensor.datatype();
  const bool raw = input.raw != nullptr;
  if (type == "BOOL")
    return raw ? Unpack<uint8_t, int64_t>(input, kToInt64) : Copy<int64_t>(c.bool_contents());
  if (type == "INT64")
    return raw ? Unpack<int64_t, int64_t>(input, kToInt64) : Copy<int64_t>(c.int64_contents());
  if (type == "UINT64") {
    std::vector<int64_t> values =
        raw ? Unpack<uint64_t, int64_t>(input, kToInt64) : Copy<int64_t>(c.uint64_contents());
    RETURN_IF_ERROR(CheckUnsigned(tensor, values));
    return values;
  }
  if (!raw && (type == "INT8" || type == "INT16" || type == "INT32"))
    return Copy<int64_t>(c.int_contents());
  if (!raw && (type == "UINT8" || type == "UINT16" || type == "UINT32"))
    return Copy<int64_t>(c.uint_contents());
  if (type == "INT8") return Unpack<int8_t, int64_t>(input, kToInt64);
  if (type == "INT16") return Unpack<int16_t, int64_t>(input, kToInt64);
  if (type == "INT32") return Unpack<int32_t, int64_t>(input, kToInt64);
  if (type == "UINT8") return Unpack<uint8_t, int64_t>(input, kToInt64);
  if (type == "UINT16") return Unpack<uint16_t, int64_t>(input, kToInt64);
  if (type == "UINT32") return Unpack<uint32_t, int64_t>(input, kToInt64);
  return Bad(tensor, "expected an integer datatype, found ", type);
}

absl::StatusOr<std::vector<float>> ReadFloats(const InputView& input) {
  const InputTensor& tensor = *input.tensor;
  const inference::InferTensorContents& c = tensor.contents();
  const std::string& type = tensor.datatype();
  const bool raw = input.raw != nullptr;
  if (type == "FP32")
    return raw ? Unpack<float, float>(input, kToFloat) : Copy<float>(c.fp32_contents());
  if (type == "FP64")
    return raw ? Unpack<double, float>(input, kToFloat) : Copy<float>(c.fp64_contents());
  if (type == "FP16") return Unpack<uint16_t, float>(input, F16ToF32);
  if (type == "BF16") return Unpack<uint16_t, float>(input, Bf16ToF32);
  return Bad(tensor, "expected a floating-point datatype, found ", type);
}

namespace {

std::string& AddOutput(std::string_view name, std::string_view datatype,
                       std::span<const int64_t> shape, inference::ModelInferResponse& response) {
  auto* output = response.add_outputs();
  output->set_name(std::string(name));
  output->set_datatype(std::string(datatype));
  for (const int64_t dim : shape) output->add_shape(dim);
  return *response.add_raw_output_contents();
}

}  // namespace

void AddBytesOutput(std::string_view name, std::span<const int64_t> shape,
                    std::span<const std::string> values, inference::ModelInferResponse& response) {
  std::string& raw = AddOutput(name, "BYTES", shape, response);
  for (const std::string& value : values) {
    const uint32_t length = static_cast<uint32_t>(value.size());
    raw.append(reinterpret_cast<const char*>(&length), sizeof(length));
    raw.append(value);
  }
}

void AddFloatOutput(std::string_view name, std::span<const int64_t> shape,
                    std::span<const float> values, inference::ModelInferResponse& response) {
  std::string& raw = AddOutput(name, "FP32", shape, response);
  raw.assign(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

}  // namespace assay
