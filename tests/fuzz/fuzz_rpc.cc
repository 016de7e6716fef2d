// Every method of both services over a channel inside the process: the first byte chooses the
// method, the rest is its request, mutated field by field. A status of gRPC that the API documents,
// and never INTERNAL or UNKNOWN.
#include <google/protobuf/descriptor.h>
#include <grpcpp/generic/generic_stub.h>

#include "tests/fuzz/infer_words.h"
#include "tests/fuzz/proto_mutator.h"
#include "tests/fuzz/require.h"
#include "tests/fuzz/small_serving.h"

namespace assay {
namespace {

using google::protobuf::MethodDescriptor;

const std::vector<const MethodDescriptor*>& Methods() {
  static const auto& methods = *new std::vector<const MethodDescriptor*>([] {
    std::vector<const MethodDescriptor*> all;
    const auto& pool = *google::protobuf::DescriptorPool::generated_pool();
    // The files that the services are in, linked for certain.
    (void)assay::v1::GenerateRequest::descriptor();
    (void)inference::ModelInferRequest::descriptor();
    for (const char* name : {"assay.v1.AssayService", "inference.GRPCInferenceService"}) {
      const auto* service = pool.FindServiceByName(name);
      Require(service != nullptr, name);
      for (int i = 0; i < service->method_count(); ++i) all.push_back(service->method(i));
    }
    return all;
  }());
  return methods;
}

const MethodDescriptor& MethodOf(uint8_t byte) { return *Methods()[byte % Methods().size()]; }

const google::protobuf::Message& RequestOf(const MethodDescriptor& method) {
  return *google::protobuf::MessageFactory::generated_factory()->GetPrototype(method.input_type());
}

// One request on a call of its own; all answers are read.
class Call {
 public:
  explicit Call(const MethodDescriptor& method) {
    static auto& stub = *new grpc::GenericStub(TheServing().fakes().channel());
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    stream_ = stub.PrepareCall(&context_, "/" + method.service()->full_name() + "/" + method.name(),
                               &queue_);
  }

  grpc::Status Run(std::string_view request) {
    const grpc::Slice slice(request.data(), request.size());
    const grpc::ByteBuffer buffer(&slice, 1);
    stream_->StartCall(this);
    bool good = Wait();
    if (good) {
      stream_->WriteLast(buffer, grpc::WriteOptions(), this);
      good = Wait();
    }
    while (good) {
      grpc::ByteBuffer answer;
      stream_->Read(&answer, this);
      good = Wait();
    }
    grpc::Status status;
    stream_->Finish(&status, this);
    Wait();
    return status;
  }

 private:
  bool Wait() {
    void* tag = nullptr;
    bool good = false;
    Require(queue_.Next(&tag, &good), "the queue of the call");
    return good;
  }

  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream_;
};

void Exercise(const MethodDescriptor& method, std::string_view request) {
  const std::unique_ptr<google::protobuf::Message> message(RequestOf(method).New());
  const bool whole = message->ParseFromArray(request.data(), static_cast<int>(request.size()));
  const grpc::Status status = Call(method).Run(request);
  const grpc::StatusCode code = status.error_code();
  const bool ours = code == grpc::StatusCode::INTERNAL || code == grpc::StatusCode::UNKNOWN;
  // A timeout of the request itself is a parameter of ModelInfer; 20 s are the fuzzer's patience.
  if (!whole || !ours) return;
  std::fprintf(stderr, "%s: %d %s\n", method.full_name().c_str(), code,
               status.error_message().c_str());
  Require(false, "a status of the API");
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) assay::Exercise(assay::MethodOf(data[0]), assay::TextOf(data + 1, size - 1));
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  if (size == 0 || max_size < 2) return size;
  if (seed % 16 == 0) data[0] = static_cast<uint8_t>(seed / 16);
  return 1 + assay::ProtoMutator(seed, assay::kInferWords)
                 .MutateBytes(assay::RequestOf(assay::MethodOf(data[0])), data + 1, size - 1,
                              max_size - 1);
}
