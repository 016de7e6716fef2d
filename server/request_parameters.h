// Parameters of a ModelInfer request -> what the engines take. A parameter that does not exist is
// an error: nothing is silently ignored. Pure. InvalidArgument names the parameter.
#pragma once
#include <string>

#include "absl/time/time.h"
#include "engine/model/model.h"
#include "engine/runtime/sequence.h"
#include "proto/open_inference/grpc_service.pb.h"

namespace assay {

struct RequestParameters {
  SamplingParams sampling;
  bool stream = true;                 // one response per piece of text, where the RPC can stream
  bool empty_final_response = false;  // Triton: the end is a response of its own, without outputs
  bool truncate = false;              // encoders: cut a text that is longer than the context
  absl::Duration timeout = absl::InfiniteDuration();
};

absl::StatusOr<RequestParameters> ParseParameters(
    const google::protobuf::Map<std::string, inference::InferParameter>& parameters,
    ModelTask task);

}  // namespace assay
