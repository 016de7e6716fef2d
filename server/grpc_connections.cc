#include "server/grpc_connections.h"

#include <grpc/grpc.h>
#include <grpc/support/alloc.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/numbers.h"

namespace assay {
namespace {

using nlohmann::json;

// An answer of channelz (JSON that we own); an empty object when it has none.
json Parse(char* answer) {
  if (answer == nullptr) return json::object();
  json parsed = json::parse(answer, nullptr, /*allow_exceptions=*/false);
  gpr_free(answer);
  return parsed.is_object() ? parsed : json::object();
}

// int64 is a string in protobuf's JSON; 0 when it is not there.
intptr_t Id(const json& object, const char* key) {
  const auto it = object.find(key);
  int64_t id = 0;
  if (it == object.end() || !it->is_string() || !absl::SimpleAtoi(it->get<std::string>(), &id)) {
    return 0;
  }
  return static_cast<intptr_t>(id);
}

// Follows the pages of a channelz list: `page(start)` asks for one, `visit` gets each element of
// `list` and returns its id.
template <typename Page, typename Visit>
void ForEach(const char* list, Page page, Visit visit) {
  for (intptr_t start = 0;;) {
    const json answer = Parse(page(start));
    const auto elements = answer.find(list);
    if (elements == answer.end() || !elements->is_array() || elements->empty()) return;
    for (const json& element : *elements) start = visit(element) + 1;
    if (answer.contains("end")) return;
  }
}

}  // namespace

int OpenGrpcConnections() {
  constexpr intptr_t kPage = 500;
  int connections = 0;
  ForEach("server", grpc_channelz_get_servers, [&](const json& server) {
    const auto ref = server.find("ref");
    const intptr_t id = ref == server.end() ? 0 : Id(*ref, "serverId");
    ForEach(
        "socketRef",
        [&](intptr_t start) { return grpc_channelz_get_server_sockets(id, start, kPage); },
        [&](const json& socket) {
          ++connections;
          return Id(socket, "socketId");
        });
    return id;
  });
  return connections;
}

}  // namespace assay
