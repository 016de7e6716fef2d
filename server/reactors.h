// The one base of our gRPC reactors: gRPC's callback API owns a reactor from its making to OnDone,
// where it deletes itself. OnDone comes after every other callback of the RPC has returned, on a
// thread of gRPC's; it never comes before Finish was called.
#pragma once
#include <grpcpp/grpcpp.h>

#include "server/status_convert.h"

namespace assay {

template <typename Reactor>
class SelfOwned : public Reactor {
 public:
  void OnDone() override { delete this; }

 protected:
  ~SelfOwned() override = default;
};

// A unary RPC that is answered at once.
inline grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context,
                                       const absl::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status, context));
  return reactor;
}

}  // namespace assay
