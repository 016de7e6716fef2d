// A ModelInferRequest, mutated field by field, through what a request goes through: checks,
// tokenizer, engine, response. An answer, or a Status of the documented codes, and never none.
#include <future>

#include "server/infer_job.h"
#include "tests/fuzz/infer_words.h"
#include "tests/fuzz/proto_mutator.h"
#include "tests/fuzz/require.h"
#include "tests/fuzz/small_serving.h"

namespace assay {
namespace {

void CheckResponse(const inference::ModelInferResponse& response, const std::string& id) {
  Require(response.id() == id, "the id is echoed");
  Require(response.outputs_size() == response.raw_output_contents_size(), "outputs have bytes");
  Require(!response.SerializeAsString().empty(), "a response can be sent");
}

void Run(const inference::ModelInferRequest& request, bool can_stream) {
  using Code = absl::StatusCode;
  std::promise<void> ended, taken;
  InferJob job(
      TheServing().context(), {.can_stream = can_stream, .origin = {}}, [&](InferEvent&& event) {
        RequireCode(event.status, Code::kInvalidArgument, Code::kNotFound, Code::kUnimplemented,
                    Code::kFailedPrecondition, Code::kDeadlineExceeded, Code::kUnavailable);
        if (event.status.ok()) CheckResponse(event.response, request.id());
        if (event.last) ended.set_value();
      });
  job.Start(request, [&] { taken.set_value(); });
  ended.get_future().wait();
  taken.get_future().wait();
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  inference::ModelInferRequest request;
  if (request.ParseFromArray(data, static_cast<int>(size))) assay::Run(request, size % 2 == 0);
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  return assay::ProtoMutator(seed, assay::kInferWords)
      .MutateBytes(inference::ModelInferRequest::default_instance(), data, size, max_size);
}
