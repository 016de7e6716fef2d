#include "engine/model/safetensors.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint_text.h"

namespace assay {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's limit
constexpr std::string_view kMetadata = "__metadata__";

// Reads {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__":
// {"key": "text", ...}} as a stream of events, so that a hostile header costs neither a document
// tree nor depth. A method that returns false ends the parse, with status() set. The names of the
// methods are nlohmann's.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(uint64_t data_begin) : data_begin_(data_begin) {}
  const absl::Status& status() const { return status_; }
  std::vector<StoredTensor>& tensors() { return tensors_; }

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool number_integer(number_integer_t v) override {
    return Unexpected(absl::StrCat("a negative number: value=", v));
  }
  bool number_float(number_float_t v, const string_t&) override {
    return Unexpected(absl::StrCat("a number that is not a 64-bit integer: value=", v));
  }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t v) override {
    if (place_ != Place::kShape && place_ != Place::kOffsets)
      return Unexpected(absl::StrCat("a number: value=", v));
    std::vector<uint64_t>& list = place_ == Place::kShape ? shape_ : offsets_;
    if (list.size() == 16)
      return Fail(absl::InvalidArgumentError(absl::StrCat(What(), " has an absurdly long list")));
    list.push_back(v);
    return true;
  }

  bool string(string_t& text) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ != Place::kDtype) return Unexpected(absl::StrCat("text: value=", Quoted(text)));
    tensor_.format = FindSafetensorsFormat(text);
    place_ = Place::kTensor;
    if (tensor_.format != nullptr) return true;
    return Fail(absl::InvalidArgumentError(
        absl::StrCat(What(), " has an unknown dtype: dtype=", Quoted(text))));
  }

  bool start_object(size_t) override {
    switch (place_) {
      case Place::kOutside:
        place_ = Place::kTop;
        return true;
      case Place::kBeforeMetadata:
        place_ = Place::kMetadata;
        return true;
      case Place::kBeforeTensor:
        place_ = Place::kTensor;
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool key(string_t& key) override {
    if (place_ == Place::kMetadata) return true;
    if (place_ == Place::kTop) return BeginEntry(key);
    if (place_ != Place::kTensor) return Unexpected(absl::StrCat("key ", Quoted(key)));
    const auto field = key == "dtype"          ? kHasDtype
                       : key == "shape"        ? kHasShape
                       : key == "data_offsets" ? kHasOffsets
                                               : 0u;
    if (field == 0) return Unexpected(absl::StrCat("key ", Quoted(key)));
    if ((fields_ & field) != 0) {
      return Fail(absl::InvalidArgumentError(absl::StrCat(What(), " has a key twice: key=", key)));
    }
    fields_ |= field;
    place_ = field == kHasDtype   ? Place::kDtype
             : field == kHasShape ? Place::kBeforeShape
                                  : Place::kBeforeOffsets;
    return true;
  }

  bool start_array(size_t) override {
    if (place_ != Place::kBeforeShape && place_ != Place::kBeforeOffsets)
      return Unexpected("an array");
    place_ = place_ == Place::kBeforeShape ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool end_object() override {
    if (place_ == Place::kTop) {
      place_ = Place::kDone;
      return true;
    }
    if (place_ == Place::kTensor && !EndTensor()) return false;
    place_ = Place::kTop;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    return Fail(absl::DataLossError(absl::StrCat(
        "header is not well-formed JSON: ", Quoted(error.what()), " offset=", position)));
  }

 private:
  enum class Place {
    kOutside,
    kTop,
    kBeforeMetadata,
    kMetadata,
    kBeforeTensor,
    kTensor,
    kDtype,
    kBeforeShape,
    kShape,
    kBeforeOffsets,
    kOffsets,
    kDone,
  };
  enum Field : unsigned { kHasDtype = 1, kHasShape = 2, kHasOffsets = 4, kHasAll = 7 };

  std::string What() const { return absl::StrCat("tensor ", Quoted(tensor_.info.name)); }
  bool Fail(absl::Status status) {
    status_ = std::move(status);
    return false;
  }
  bool Unexpected(const std::string& what) {
    const bool inside =
        place_ != Place::kOutside && place_ != Place::kTop && place_ != Place::kDone;
    return Fail(absl::DataLossError(absl::StrCat(inside ? What() : "header", " contains ", what)));
  }

  bool BeginEntry(const std::string& name) {
    tensor_ = StoredTensor();
    tensor_.info.name = name;
    shape_.clear();
    offsets_.clear();
    fields_ = 0;
    place_ = name == kMetadata ? Place::kBeforeMetadata : Place::kBeforeTensor;
    return true;
  }

  bool EndTensor() {
    if (fields_ != kHasAll)
      return Fail(absl::DataLossError(absl::StrCat(What(), " lacks dtype, shape or data_offsets")));
    if (absl::Status status = SetShape(shape_, tensor_); !status.ok())
      return Fail(std::move(status));
    const uint64_t bytes = tensor_.info.stored_bytes;
    if (offsets_.size() != 2 || offsets_[0] > offsets_[1] || offsets_[1] - offsets_[0] != bytes ||
        offsets_[1] > UINT64_MAX - data_begin_) {
      return Fail(absl::DataLossError(absl::StrCat(
          What(),
          " has data_offsets that contradict its shape: begin=", offsets_.empty() ? 0 : offsets_[0],
          " end=", offsets_.size() < 2 ? 0 : offsets_[1], " bytes of the shape=", bytes)));
    }
    tensor_.offset = data_begin_ + offsets_[0];
    tensors_.push_back(std::move(tensor_));
    return true;
  }

  const uint64_t data_begin_;
  std::vector<StoredTensor> tensors_;
  absl::Status status_;
  Place place_ = Place::kOutside;
  StoredTensor tensor_;  // the one being read
  std::vector<uint64_t> shape_, offsets_;
  unsigned fields_ = 0;
};

absl::Status CheckUtf8(std::string_view header) {
  const size_t bad = FindInvalidUtf8(header);
  if (bad == std::string_view::npos) return absl::OkStatus();
  // The quoted text around the byte: the offending name, if it is one.
  const size_t quote = header.rfind('"', bad),
               begin = quote == std::string_view::npos ? 0 : quote + 1;
  const size_t end = std::min(header.find('"', bad), header.size());
  return absl::InvalidArgumentError(absl::StrCat(
      "header is not UTF-8: text=", Quoted(header.substr(begin, end - begin)), " offset=", bad));
}

// The format allows no bytes that belong to no tensor.
absl::Status CheckNoGaps(std::span<const StoredTensor> tensors, uint64_t data_begin,
                         uint64_t file_bytes) {
  uint64_t used = 0;
  for (const StoredTensor& t : tensors)
    used += t.info.stored_bytes;  // no overlap: at most file_bytes
  if (used == file_bytes - data_begin) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("file holds bytes of no tensor: data bytes=",
                                          file_bytes - data_begin, " bytes of all tensors=", used));
}

}  // namespace

absl::StatusOr<std::vector<StoredTensor>> ParseSafetensors(std::span<const std::byte> file) {
  uint64_t header_bytes = 0;
  if (file.size() < sizeof header_bytes) {
    return absl::DataLossError(
        absl::StrCat("file ends inside the header's length: bytes=", file.size()));
  }
  std::memcpy(&header_bytes, file.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("header is too large (or this is no safetensors file): bytes=", header_bytes,
                     " limit=", kMaxHeaderBytes));
  }
  if (header_bytes > file.size() - sizeof header_bytes) {
    return absl::DataLossError(absl::StrCat(
        "file ends inside the header: header bytes=", header_bytes, " file bytes=", file.size()));
  }
  const uint64_t data_begin = sizeof header_bytes + header_bytes;
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + sizeof header_bytes,
                              header_bytes);
  RETURN_IF_ERROR(CheckUtf8(text));
  HeaderHandler handler(data_begin);
  if (!nlohmann::json::sax_parse(text, &handler)) return handler.status();
  std::vector<StoredTensor> tensors = std::move(handler.tensors());
  RETURN_IF_ERROR(SortByName(tensors));
  RETURN_IF_ERROR(CheckRanges(tensors, data_begin, file.size()));
  RETURN_IF_ERROR(CheckNoGaps(tensors, data_begin, file.size()));
  return tensors;
}

}  // namespace assay
