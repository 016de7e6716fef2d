// The connections that this process's gRPC servers hold now, as gRPC itself counts them (channelz,
// which the library keeps by default). Any thread; one call is O(connections).
#pragma once

namespace assay {

int OpenGrpcConnections();

}  // namespace assay
