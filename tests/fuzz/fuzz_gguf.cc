// Any bytes as a GGUF file: a Status or a checkpoint whose every value can be read, whose JSON can
// be printed.
#include <nlohmann/json.hpp>

#include "engine/model/gguf.h"
#include "tests/fuzz/read_all_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = std::as_bytes(std::span(data, size));
  const auto contents = assay::ParseGguf(file);
  assay::RequireDocumentedCode(contents.status());
  if (!contents.ok()) return 0;
  assay::ReadAllTensors(contents->tensors, file);
  (void)contents->config.dump();  // throws for text that is not UTF-8
  (void)contents->tokenizer.dump();
  return 0;
}
