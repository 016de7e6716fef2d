// Whose connection a server's end is: gRPC, which was given a socket pair, knows its peer as "fd:N"
// only. What is known of a number stays until the number is given to another connection, so it
// holds for as long as anybody may ask.
//
// Thread rule: any thread.
#pragma once
#include <map>
#include <string>

#include "base/mutex.h"

namespace assay {

class PeerAddresses {
 public:
  void Set(int fd, const std::string& address) ABSL_LOCKS_EXCLUDED(mu_) {
    const MutexLock lock(mu_);
    of_[fd] = address;
  }
  // Of "fd:N" the address, without its port; other peers as they are.
  std::string Of(const std::string& peer) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable Mutex mu_;
  std::map<int, std::string> of_ ABSL_GUARDED_BY(mu_);  // as many as there were at once
};

}  // namespace assay
