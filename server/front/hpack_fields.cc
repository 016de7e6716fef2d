#include "server/front/hpack_fields.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

constexpr int kMostShift = 28;  // five bytes of seven bits: more than any length here

}  // namespace

absl::StatusOr<bool> HpackFields::TakeRest(uint8_t byte) {
  if (shift_ > kMostShift)
    return absl::InvalidArgumentError("not HPACK: an integer of too many bytes");
  number_ += uint64_t{byte & 0x7fu} << shift_;
  shift_ += 7;
  return (byte & 0x80) == 0;
}

absl::Status HpackFields::TakeField(uint8_t byte) {
  if (++fields_ > kMost)
    return absl::ResourceExhaustedError(
        absl::StrCat("a header block has too many fields: most=", kMost));
  const bool indexed = (byte & 0x80) != 0, remembered = !indexed && (byte & 0x40) != 0,
             resized = !indexed && !remembered && (byte & 0x20) != 0;
  const uint8_t full = indexed ? 0x7f : remembered ? 0x3f : resized ? 0x1f : 0x0f;
  const auto index = static_cast<uint8_t>(byte & full);
  after_index_ = indexed || resized ? At::kField : At::kValueLength;
  number_ = 0;
  shift_ = 0;
  const bool literal_name = index == 0 && !indexed && !resized;
  at_ = index == full ? At::kIndex : literal_name ? At::kNameLength : after_index_;
  return absl::OkStatus();
}

void HpackFields::TakeLength(uint8_t byte, At rest, At text) {
  number_ = byte & 0x7fu;
  shift_ = 0;
  at_ = number_ == 0x7f ? rest : text;
  if (number_ == 0) EndText();
}

void HpackFields::EndText() { at_ = at_ == At::kName ? At::kValueLength : At::kField; }

absl::Status HpackFields::Take(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    if (at_ == At::kName || at_ == At::kValue) {
      const auto part = static_cast<size_t>(std::min<uint64_t>(number_, bytes.size()));
      number_ -= part;
      bytes = bytes.subspan(part);
      if (number_ == 0) EndText();
      continue;
    }
    const auto byte = static_cast<uint8_t>(bytes.front());
    bytes = bytes.subspan(1);
    if (at_ == At::kField) {
      RETURN_IF_ERROR(TakeField(byte));
    } else if (at_ == At::kNameLength) {
      TakeLength(byte, At::kNameLengthRest, At::kName);
    } else if (at_ == At::kValueLength) {
      TakeLength(byte, At::kValueLengthRest, At::kValue);
    } else {
      ASSIGN_OR_RETURN(const bool ended, TakeRest(byte));
      if (!ended) continue;
      at_ = at_ == At::kIndex ? after_index_ : at_ == At::kNameLengthRest ? At::kName : At::kValue;
    }
  }
  return absl::OkStatus();
}

}  // namespace assay
