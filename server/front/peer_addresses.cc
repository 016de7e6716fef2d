#include "server/front/peer_addresses.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace assay {

std::string CountedAs(const std::string& address) {
  constexpr int kNetworkBytes = 8;
  in6_addr bytes{};
  // "fe80::1%eth0": the zone is our own, not the client's.
  if (inet_pton(AF_INET6, address.substr(0, address.find('%')).c_str(), &bytes) != 1)
    return address;
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (IN6_IS_ADDR_V4MAPPED(&bytes)) {
    inet_ntop(AF_INET, &bytes.s6_addr[12], text.data(), text.size());
    return text.data();
  }
  std::fill(std::begin(bytes.s6_addr) + kNetworkBytes, std::end(bytes.s6_addr), 0);
  inet_ntop(AF_INET6, &bytes, text.data(), text.size());
  return absl::StrCat(text.data(), "/64");
}

PeerAddresses::Peer PeerAddresses::Find(const std::string& peer) const {
  int fd = 0;
  if (!absl::StartsWith(peer, "fd:") || !absl::SimpleAtoi(peer.substr(3), &fd))
    return {.address = peer, .subject = ""};
  const MutexLock lock(mu_);
  const auto it = of_.find(fd);
  return it == of_.end() ? Peer{.address = peer, .subject = ""} : it->second;
}

}  // namespace assay
