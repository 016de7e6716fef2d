#include "tests/fuzz/proto_mutator.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "proto/open_inference/grpc_service.pb.h"

namespace assay {
namespace {

constexpr std::string_view kWords[] = {"text_input", "INT64"};
constexpr size_t kMostBytes = 4096;

// The numbers of all fields in messages that grew out of an empty one, "outer.inner".
std::set<std::string> FieldsReached(unsigned seeds) {
  std::set<std::string> reached;
  std::vector<uint8_t> bytes(kMostBytes);
  for (unsigned seed = 0; seed < seeds; ++seed) {
    size_t size = 0;
    for (unsigned step = 0; step < 12; ++step) {
      size = ProtoMutator(seed * 100 + step, kWords)
                 .MutateBytes(inference::ModelInferRequest::default_instance(), bytes.data(), size,
                              bytes.size());
    }
    inference::ModelInferRequest request;
    EXPECT_TRUE(request.ParseFromArray(bytes.data(), static_cast<int>(size)));
    std::vector<const google::protobuf::FieldDescriptor*> fields;
    request.GetReflection()->ListFields(request, &fields);
    for (const auto* field : fields) reached.insert(field->name());
    for (const auto& input : request.inputs()) {
      input.GetReflection()->ListFields(input, &fields);
      for (const auto* field : fields) reached.insert("inputs." + field->name());
      if (input.datatype() == "INT64") reached.insert("a word");
    }
  }
  return reached;
}

TEST(ProtoMutatorTest, EveryFieldIsReachedAndAllIsAMessage) {
  const std::set<std::string> reached = FieldsReached(400);
  for (const char* field : {"model_name", "model_version", "id", "parameters", "inputs", "outputs",
                            "raw_input_contents", "inputs.name", "inputs.datatype", "inputs.shape",
                            "inputs.parameters", "inputs.contents", "a word"}) {
    EXPECT_TRUE(reached.contains(field)) << field;
  }
}

TEST(ProtoMutatorTest, WhatIsTooLongIsLeftAsItWas) {
  inference::ModelInferRequest request;
  request.set_model_name("text");
  std::string bytes = request.SerializeAsString();
  for (unsigned seed = 0; seed < 50; ++seed) {
    const size_t size = ProtoMutator(seed, kWords)
                            .MutateBytes(request, reinterpret_cast<uint8_t*>(bytes.data()),
                                         bytes.size(), bytes.size());
    EXPECT_LE(size, bytes.size());
  }
}

TEST(ProtoMutatorTest, BytesThatAreNoMessageBecomeOne) {
  std::vector<uint8_t> bytes(kMostBytes, 0xff);
  const size_t size = ProtoMutator(1, kWords).MutateBytes(
      inference::ModelInferRequest::default_instance(), bytes.data(), 9, bytes.size());
  inference::ModelInferRequest request;
  EXPECT_TRUE(request.ParseFromArray(bytes.data(), static_cast<int>(size)));
}

}  // namespace
}  // namespace assay
