// The one base of our gRPC reactors: gRPC's callback API owns a reactor from its making to OnDone,
// where it deletes itself. OnDone comes after every other callback of the RPC has returned, on a
// thread of gRPC's; it never comes before Finish was called.
#pragma once
#include <grpcpp/grpcpp.h>

#include "server/request_record.h"
#include "server/service_context.h"
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

// An RPC that is over before it began.
template <typename Reactor>
class OverReactor final : public SelfOwned<Reactor> {
 public:
  explicit OverReactor(grpc::Status status) { this->Finish(std::move(status)); }
};

// The first line of every RPC: what the client needs for it (server/access.h). Null: it may go on;
// else the reactor that refuses it.
template <typename Reactor>
Reactor* Refuse(const ServiceContext& context, grpc::CallbackServerContext* rpc, Role role) {
  const absl::Status allowed = context.access.Check(*rpc, role).status();
  return allowed.ok() ? nullptr : new OverReactor<Reactor>(ToGrpc(allowed, rpc));
}

// The same for inference; fills in whose it is.
template <typename Reactor>
Reactor* Refuse(const ServiceContext& context, Caller& caller, Role role) {
  const absl::StatusOr<std::string> client = context.access.Check(*caller.rpc, role);
  if (!client.ok()) return new OverReactor<Reactor>(ToGrpc(client.status(), caller.rpc));
  caller.origin = OriginOf(context, *caller.rpc, *client);
  return nullptr;
}

}  // namespace assay
