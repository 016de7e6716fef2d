#include "server/grpc_connections.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/open_inference/grpc_service.grpc.pb.h"

namespace assay {
namespace {

// A connection of its own to the port, in use: the answer to an RPC has come over it.
std::shared_ptr<grpc::Channel> Connected(int port) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  auto channel = grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port),
                                           grpc::InsecureChannelCredentials(), arguments);
  grpc::ClientContext context;
  context.set_wait_for_ready(true);
  inference::ServerLiveResponse response;
  const grpc::Status status =
      inference::GRPCInferenceService::NewStub(channel)->ServerLive(&context, {}, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << status.error_message();
  return channel;
}

TEST(GrpcConnectionsTest, CountsEveryConnectionOfEveryServer) {
  const int before = OpenGrpcConnections();
  inference::GRPCInferenceService::Service nothing;
  int port = 0;
  const std::unique_ptr<grpc::Server> server =
      grpc::ServerBuilder()
          .AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port)
          .RegisterService(&nothing)
          .BuildAndStart();
  EXPECT_EQ(OpenGrpcConnections(), before);  // a listening socket is no connection
  std::vector<std::shared_ptr<grpc::Channel>> channels;
  for (int i = 1; i <= 3; ++i) {
    channels.push_back(Connected(port));
    EXPECT_EQ(OpenGrpcConnections(), before + i);
  }
  server->Shutdown(std::chrono::system_clock::now());
  server->Wait();
  EXPECT_EQ(OpenGrpcConnections(), before);
}

}  // namespace
}  // namespace assay
