// A ModelInferRequest, mutated field by field: its tensors as vectors.
#include "server/request_parameters.h"
#include "server/tensor_codec.h"
#include "tests/fuzz/infer_words.h"
#include "tests/fuzz/proto_mutator.h"
#include "tests/fuzz/require.h"

namespace assay {
namespace {

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

template <typename Values>
void Check(const absl::StatusOr<Values>& values, const InputView& input) {
  RequireCode(values.status(), kInvalid);
  if (values.ok())
    Require(static_cast<int64_t>(values->size()) == input.elements, "as many values as the shape");
}

void Exercise(const inference::ModelInferRequest& request) {
  for (const ModelTask task : {ModelTask::kGenerate, ModelTask::kEmbed}) {
    const auto parameters = ParseParameters(request.parameters(), task);
    RequireCode(parameters.status(), kInvalid);
    if (parameters.ok() && task == ModelTask::kGenerate)
      Require(Validate(parameters->sampling).ok(), "valid parameters");
  }
  const auto inputs = CheckInputs(request);
  RequireCode(inputs.status(), kInvalid, absl::StatusCode::kUnimplemented);
  if (!inputs.ok()) return;
  for (const InputView& input : *inputs) {
    Check(ReadBytes(input), input);
    Check(ReadIntegers(input), input);
    Check(ReadFloats(input), input);
  }
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  inference::ModelInferRequest request;
  if (request.ParseFromArray(data, static_cast<int>(size))) assay::Exercise(request);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  return assay::ProtoMutator(seed, assay::kInferWords)
      .MutateBytes(inference::ModelInferRequest::default_instance(), data, size, max_size);
}
