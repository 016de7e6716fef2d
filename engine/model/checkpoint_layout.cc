#include "engine/model/checkpoint_layout.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/model/checkpoint_text.h"

namespace assay {
namespace {

constexpr uint64_t kMaxElements = uint64_t{1}
                                  << 56;  // so that bytes and bits of every encoding fit int64_t

absl::Status BadShape(const StoredTensor& tensor, const std::string& what,
                      std::span<const uint64_t> dims) {
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", Quoted(tensor.info.name), " ", what, ": shape=[",
                   absl::StrJoin(dims.first(std::min<size_t>(dims.size(), 8)), ","),
                   "] encoding=", std::string(tensor.format->name)));
}

// Where row `row` of the canonical matrix is stored. The converter wrote reshape(heads, 2, half,
// k).swapaxes(1, 2): row (head, j, s) of the file is row (head, s, j) of the model. `head_rows` = 2
// * half.
int64_t StoredRow(int64_t row, int64_t head_rows) {
  const int64_t head = row / head_rows, within = row % head_rows, half = head_rows / 2;
  return head * head_rows + within % half * 2 + within / half;
}

}  // namespace

absl::Status SetShape(std::span<const uint64_t> dims, StoredTensor& tensor) {
  Shape& shape = tensor.info.shape;
  if (dims.size() > shape.dim.size()) return BadShape(tensor, "has more than 4 dimensions", dims);
  uint64_t elements = 1;
  bool empty = false;
  shape = Shape();
  for (const uint64_t d : dims) {
    if (d > kMaxElements) return BadShape(tensor, "is absurdly large", dims);
    shape.dim[shape.rank++] = static_cast<int64_t>(d);
    empty = empty || d == 0;
    // Zero dimensions are left out of the product: [2^40, 2^40, 0] overflows Shape::elements() on
    // its way to 0.
    if (__builtin_mul_overflow(elements, d == 0 ? 1 : d, &elements) || elements > kMaxElements) {
      return BadShape(tensor, "is absurdly large", dims);
    }
  }
  if (empty) elements = 0;
  const auto width = static_cast<uint64_t>(tensor.format->block_elements);
  const uint64_t row = dims.empty() ? 1 : dims.back();
  if (row % width != 0) {
    return BadShape(tensor, absl::StrCat("has rows that are not whole blocks of ", width), dims);
  }
  tensor.info.stored_bytes = elements / width * static_cast<uint64_t>(tensor.format->block_bytes);
  tensor.info.encoding = std::string(tensor.format->name);
  return absl::OkStatus();
}

absl::Status SortByName(std::vector<StoredTensor>& tensors) {
  const auto name = [](const StoredTensor& t) -> const std::string& { return t.info.name; };
  std::ranges::sort(tensors, {}, name);
  const auto twice = std::ranges::adjacent_find(tensors, {}, name);
  if (twice == tensors.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("tensor ", Quoted(twice->info.name), " occurs twice"));
}

absl::Status CheckRanges(std::span<const StoredTensor> tensors, uint64_t data_begin,
                         uint64_t file_bytes) {
  std::vector<const StoredTensor*> order;
  order.reserve(tensors.size());
  for (const StoredTensor& t : tensors) {
    if (t.offset < data_begin || t.offset > file_bytes ||
        t.info.stored_bytes > file_bytes - t.offset) {
      return absl::DataLossError(absl::StrCat(
          "tensor ", Quoted(t.info.name), " lies outside of the file's data: offset=", t.offset,
          " bytes=", t.info.stored_bytes, " data=[", data_begin, ",", file_bytes, ")"));
    }
    if (t.info.stored_bytes > 0) order.push_back(&t);
  }
  std::ranges::sort(order, {}, &StoredTensor::offset);
  for (size_t i = 1; i < order.size(); ++i) {
    const uint64_t end = order[i - 1]->offset + order[i - 1]->info.stored_bytes;
    if (end > order[i]->offset) {
      return absl::DataLossError(absl::StrCat("tensor ", Quoted(order[i]->info.name),
                                              " overlaps tensor ", Quoted(order[i - 1]->info.name),
                                              ": offset=", order[i]->offset,
                                              " end of the other=", end));
    }
  }
  return absl::OkStatus();
}

absl::Status DecodeRows(const StoredTensor& tensor, std::span<const std::byte> file, int64_t row,
                        int64_t rows, std::span<float> out) {
  const int64_t num_rows = tensor.info.shape[0];
  const int64_t width = num_rows == 0 ? 0 : tensor.info.shape.elements() / num_rows;
  if (row < 0 || rows < 0 || row > num_rows || rows > num_rows - row) {
    return absl::InvalidArgumentError(
        absl::StrCat("rows do not fit tensor ", Quoted(tensor.info.name), ": row=", row,
                     " rows=", rows, " shape=", ToString(tensor.info.shape)));
  }
  if (out.size() != static_cast<size_t>(rows * width)) {
    return absl::InvalidArgumentError(absl::StrCat("buffer does not fit the rows of tensor ",
                                                   Quoted(tensor.info.name), ": size=", out.size(),
                                                   " expected=", rows * width));
  }
  if (tensor.format->decode == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("values of tensor ", Quoted(tensor.info.name),
                     " cannot be read as f32: encoding=", tensor.info.encoding));
  }
  if (out.empty()) return absl::OkStatus();
  const std::byte* blocks = file.data() + tensor.offset;
  if (tensor.interleaved_heads == 0) {
    DecodeElements(*tensor.format, blocks, row * width, out);
    return absl::OkStatus();
  }
  const int64_t head_rows = num_rows / tensor.interleaved_heads;
  for (int64_t r = 0; r < rows; ++r) {
    DecodeElements(*tensor.format, blocks, StoredRow(row + r, head_rows) * width,
                   out.subspan(static_cast<size_t>(r * width), static_cast<size_t>(width)));
  }
  return absl::OkStatus();
}

}  // namespace assay
