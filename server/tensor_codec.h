// Tensors of the Open Inference Protocol <-> vectors. Everything here comes from the network: every
// size is checked before it is used, and nothing is allocated that the message did not pay for.
// Wire rules: little-endian, row-major, no padding; BYTES elements have a 4-byte length in front;
// FP16 and BF16 only as raw bytes.
//
// Pure and thread-safe. Errors are InvalidArgument and name the tensor.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "proto/open_inference/grpc_service.pb.h"

namespace assay {

using InputTensor = inference::ModelInferRequest::InferInputTensor;

// One input with the bytes that belong to it. Views into the request.
struct InputView {
  const InputTensor* tensor = nullptr;
  const std::string* raw = nullptr;  // null: typed contents
  int64_t elements = 0;              // product of the shape
};

// Pairs the inputs with raw_input_contents and checks names, datatypes, shapes and byte counts.
absl::StatusOr<std::vector<InputView>> CheckInputs(const inference::ModelInferRequest& request);

// Values of a checked input. Integers come from any integer type or BOOL; an unsigned value above
// int64's largest is an error. Floats also from FP16, BF16, FP32 and FP64.
absl::StatusOr<std::vector<std::string>> ReadBytes(const InputView& input);
absl::StatusOr<std::vector<int64_t>> ReadIntegers(const InputView& input);
absl::StatusOr<std::vector<float>> ReadFloats(const InputView& input);

// Appends an output with its raw bytes.
void AddBytesOutput(std::string_view name, std::span<const int64_t> shape,
                    std::span<const std::string> values, inference::ModelInferResponse& response);
void AddFloatOutput(std::string_view name, std::span<const int64_t> shape,
                    std::span<const float> values, inference::ModelInferResponse& response);

// "[2,-1]".
std::string ShapeText(const google::protobuf::RepeatedField<int64_t>& shape);

}  // namespace assay
