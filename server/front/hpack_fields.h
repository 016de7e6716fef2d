// Counts the fields of a header block (HPACK, RFC 7541, section 6) by walking over their lengths:
// nothing is decoded or kept. gRPC 1.51 keeps some 200 bytes for each field until its RPC is over,
// so that 64 KiB of fields of three bytes cost it 4.7 MB: 200 such blocks from one client took the
// server from 55 to 750 MB.
//
// Thread rule: one thread per object.
#pragma once
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/status.h"

namespace assay {

class HpackFields {
 public:
  // gRPC takes 8 KiB of metadata, of which each field is 32 bytes and its text (RFC 9113, section
  // 6.5.2): it refuses more fields than these in any case.
  static constexpr size_t kMost = 256;

  void Begin() { *this = HpackFields(); }  // another block
  // The next bytes of it. ResourceExhausted: more fields than kMost, changes of the table's size
  // included; InvalidArgument: a length that no block can have.
  absl::Status Take(std::span<const std::byte> bytes);

 private:
  enum class At {
    kField,
    kIndex,
    kNameLength,
    kNameLengthRest,
    kName,
    kValueLength,
    kValueLengthRest,
    kValue
  };
  absl::Status TakeField(uint8_t byte);
  // Of an integer whose first byte was full. True: it has ended, and is in number_.
  absl::StatusOr<bool> TakeRest(uint8_t byte);
  // The first byte of a string: where its length or its bytes go on.
  void TakeLength(uint8_t byte, At rest, At text);
  void EndText();

  At at_ = At::kField;
  At after_index_ = At::kField;
  size_t fields_ = 0;
  uint64_t number_ = 0;  // the integer being read; of a string, bytes left
  int shift_ = 0;
};

}  // namespace assay
