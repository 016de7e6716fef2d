// Any bytes as a safetensors file, and as one of the JSON files beside it.
#include <nlohmann/json.hpp>

#include "engine/model/checkpoint_text.h"
#include "engine/model/safetensors.h"
#include "tests/fuzz/read_all_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto tensors = assay::ParseSafetensors(file);
  assay::RequireDocumentedCode(tensors.status());
  if (tensors.ok()) assay::ReadAllTensors(*tensors, file);
  const auto json =
      assay::ParseBoundedJson({reinterpret_cast<const char*>(data), size}, "fuzz.json");
  assay::RequireDocumentedCode(json.status());
  if (json.ok()) (void)json->dump();
  return 0;
}
