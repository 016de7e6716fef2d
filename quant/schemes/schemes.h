// The scheme families, for the list, and those schemes that kernels ask for by name. Thread-safe.
#pragma once
#include <memory>
#include <span>
#include <string>

#include "quant/scheme.h"

namespace assay {

// `options`: what the spelling has behind its colon. InvalidArgument names the one at fault.
using MakeScheme =
    absl::StatusOr<std::unique_ptr<const QuantScheme>>(std::span<const std::string> options);
struct SchemeFamily {
  std::string_view name;
  std::string_view options;  // what it takes, in words for messages; empty = none
  MakeScheme* make;
};

MakeScheme MakeF32;          // f32.cc
MakeScheme MakeBf16;         // bf16.cc
MakeScheme MakeInt8Channel;  // int8_channel.cc
MakeScheme MakeInt8Group;    // int8_group.cc
MakeScheme MakeInt8Sparse;   // int8_sparse.cc
MakeScheme MakeInt4Group;    // int4_group.cc
MakeScheme MakeInt3Group;    // int3_group.cc
MakeScheme MakeFp8E4M3;      // fp8.cc
MakeScheme MakeFp8E5M2;      // fp8.cc
MakeScheme MakeNf4;          // nf4.cc
MakeScheme MakeFp4;          // fp4.cc
MakeScheme MakeMxfp4;        // mxfp4.cc
MakeScheme MakeNvfp4;        // nvfp4.cc
MakeScheme MakeW4A8;         // w4a8.cc

// For families without options: InvalidArgument when there are any.
absl::Status CheckNoOptions(std::span<const std::string> options);

inline const QuantScheme& F32Scheme() {
  static const QuantScheme& scheme = *FindScheme("f32").value();
  return scheme;
}
inline const QuantScheme& Bf16Scheme() {
  static const QuantScheme& scheme = *FindScheme("bf16").value();
  return scheme;
}
inline const QuantScheme& Int8ChannelScheme() {
  static const QuantScheme& scheme = *FindScheme("int8_channel").value();
  return scheme;
}

}  // namespace assay
