// Whose connection a server's end is: gRPC, which was given a socket pair, knows its peer as "fd:N"
// only. Address, and the subject of the certificate that the client has shown. What is known of a
// number stays until the number is given to another connection, so it holds for as long as anybody
// may ask.
//
// Thread rule: any thread.
#pragma once
#include <map>
#include <string>
#include <utility>

#include "base/mutex.h"

namespace assay {

// What an IP address counts as where the connections or requests of one client are bounded: an IPv6
// client has a whole /64 to choose from, so that is counted ("2001:db8:1:2::/64"); IPv4, mapped
// into IPv6 or not, by its address. What is no address is as it was.
std::string CountedAs(const std::string& address);

class PeerAddresses {
 public:
  struct Peer {
    std::string address;  // without its port
    std::string subject;  // as in RFC 2253, "O=example,CN=ops"; empty: no certificate
  };
  void Set(int fd, Peer peer) ABSL_LOCKS_EXCLUDED(mu_) {
    const MutexLock lock(mu_);
    of_[fd] = std::move(peer);
  }
  // Of "fd:N"; other peers have themselves as address.
  Peer Find(const std::string& peer) const ABSL_LOCKS_EXCLUDED(mu_);
  std::string Of(const std::string& peer) const { return Find(peer).address; }

 private:
  mutable Mutex mu_;
  std::map<int, Peer> of_ ABSL_GUARDED_BY(mu_);  // as many as there were at once
};

}  // namespace assay
