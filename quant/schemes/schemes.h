// The schemes by name, for the list and for kernels that support one of them. Thread-safe.
#pragma once
#include "quant/scheme.h"

namespace assay {

const QuantScheme& F32Scheme();          // "f32": f32.cc
const QuantScheme& Bf16Scheme();         // "bf16": bf16.cc
const QuantScheme& Int8ChannelScheme();  // "int8_channel": int8_channel.cc

}  // namespace assay
