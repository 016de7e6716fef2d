#include "server/front/peer_addresses.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace assay {
namespace {

TEST(PeerAddressesTest, AnIpv6ClientCountsAsItsNetwork) {
  EXPECT_EQ(CountedAs("2001:db8:1:2::7"), "2001:db8:1:2::/64");
  EXPECT_EQ(CountedAs("2001:db8:1:2:ffff:ffff:ffff:ffff"), "2001:db8:1:2::/64");
  EXPECT_NE(CountedAs("2001:db8:1:3::7"), CountedAs("2001:db8:1:2::7"));
  EXPECT_EQ(CountedAs("fe80::1%eth0"), "fe80::/64");
}

TEST(PeerAddressesTest, AnIpv4ClientByItsAddressHoweverItIsWritten) {
  EXPECT_EQ(CountedAs("192.0.2.7"), "192.0.2.7");
  EXPECT_EQ(CountedAs("::ffff:192.0.2.7"), "192.0.2.7");
  EXPECT_EQ(CountedAs("fd:12"), "fd:12");
  EXPECT_EQ(CountedAs("unknown"), "unknown");
}

TEST(PeerAddressesTest, KnowsWhoseADescriptorIs) {
  PeerAddresses peers;
  peers.Set(12, {.address = "192.0.2.7", .subject = "CN=ops"});
  EXPECT_EQ(peers.Of("fd:12"), "192.0.2.7");
  EXPECT_EQ(peers.Find("fd:12").subject, "CN=ops");
  EXPECT_EQ(peers.Of("fd:13"), "fd:13");
  EXPECT_EQ(peers.Of("ipv4:192.0.2.8:1"), "ipv4:192.0.2.8:1");
}

}  // namespace
}  // namespace assay
