// Which versions of one model have which label, and which of them the next unversioned request goes
// to (docs/adr/0011-versions-side-by-side.md). Not thread-safe: the registry's lock guards both.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/time/time.h"
#include "base/status.h"

namespace assay {

// Numbers of versions; 0: none.
struct VersionLabels {
  int64_t stable = 0;  // unversioned requests
  int64_t canary = 0;  // of those, a share of the inference requests
  // Was stable; loaded until `previous_until` of the registry's steady clock, for a rollback.
  int64_t previous = 0;
  double canary_share = 0;
  absl::Time previous_until = absl::InfiniteFuture();

  // "stable", "canary", "previous"; empty: none of them.
  std::string_view LabelOf(int64_t version) const;
  double ShareOf(int64_t version) const;  // of the unversioned inference requests, 0..1
  // InvalidArgument: no such label; NotFound: nobody has it. Both name it.
  absl::StatusOr<int64_t> VersionOf(std::string_view label) const;
  // Takes a version out. In place of the stable one steps the previous one, or else the canary.
  void Remove(int64_t version);
};

// Which version of a model a request is for. From a number: that version, 0: the stable one.
struct VersionSelector {
  // NOLINTNEXTLINE(google-explicit-constructor): a number is the usual case
  VersionSelector(int64_t version = 0) : number(version) {}
  // InvalidArgument: both are given, or the number is negative.
  static absl::StatusOr<VersionSelector> Create(int64_t number, std::string_view label);
  bool is_open() const { return number == 0 && label.empty(); }

  int64_t number = 0;
  std::string label;
  bool shared = false;  // an inference request: when open, the canary's share of them goes to it
};

// Spreads a share evenly: request n goes to the canary when frac(n * golden ratio) < share. Of any
// n <= 1000 requests in a row, n * share go there, give or take less than 4 (the test tries them
// all); no fixed period, so clients that take turns do not always meet the same version.
class TrafficSplit {
 public:
  bool NextIsCanary(double share);

 private:
  uint64_t position_ = 0;  // frac(n * golden ratio) * 2^64
};

}  // namespace assay
