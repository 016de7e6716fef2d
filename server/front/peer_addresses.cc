#include "server/front/peer_addresses.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"

namespace assay {

std::string PeerAddresses::Of(const std::string& peer) const {
  int fd = 0;
  if (!absl::StartsWith(peer, "fd:") || !absl::SimpleAtoi(peer.substr(3), &fd)) return peer;
  const MutexLock lock(mu_);
  const auto it = of_.find(fd);
  return it == of_.end() ? peer : it->second;
}

}  // namespace assay
