#include "server/trace_context.h"

#include <gtest/gtest.h>

#include <string>

namespace assay {
namespace {

const std::string kGood = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
constexpr TraceId kTrace{0x4bf92f3577b34da6, 0xa3ce929d0e0e4736};

std::string Changed(size_t at, const std::string& text) {
  return kGood.substr(0, at) + text + kGood.substr(at + text.size());
}

TEST(TraceContextTest, ReadsTheExampleOfTheSpecification) {
  EXPECT_EQ(ParseTraceparent(kGood), kTrace);
  EXPECT_EQ(ParseTraceparent(Changed(53, "ff")), kTrace);  // flags that nobody knows yet
}

TEST(TraceContextTest, ATraceThatIsNotSampledIsNone) {
  EXPECT_FALSE(ParseTraceparent(Changed(53, "00")));
  EXPECT_FALSE(ParseTraceparent(Changed(53, "02")));
}

TEST(TraceContextTest, LaterVersionsMayGoOn) {
  const std::string later = Changed(0, "cc");
  EXPECT_EQ(ParseTraceparent(later), kTrace);
  EXPECT_EQ(ParseTraceparent(later + "-what-the-future-brings"), kTrace);
  EXPECT_FALSE(ParseTraceparent(later + ".what"));
  EXPECT_FALSE(ParseTraceparent(kGood + "-more"));
}

TEST(TraceContextTest, WhatIsMalformedIsNone) {
  for (const std::string& header : {std::string(),
                                    std::string("00"),
                                    kGood.substr(1),
                                    kGood + " ",
                                    " " + kGood,
                                    Changed(0, "ff"),
                                    Changed(3, std::string(32, '0')),
                                    Changed(36, std::string(16, '0')),
                                    Changed(3, "4BF92F35"),
                                    Changed(10, "g"),
                                    Changed(20, "+"),
                                    Changed(36, "-"),
                                    Changed(2, "_"),
                                    Changed(35, "0"),
                                    Changed(52, "0"),
                                    Changed(0, "0x"),
                                    Changed(53, "0g"),
                                    Changed(12, std::string(1, '\0')),
                                    std::string(10000, '0'),
                                    std::string(55, '-')}) {
    EXPECT_FALSE(ParseTraceparent(header)) << header;
  }
}

TEST(TraceContextTest, NoPrefixOfAGoodOneIsGood) {
  for (size_t length = 0; length < kGood.size(); ++length) {
    EXPECT_FALSE(ParseTraceparent(kGood.substr(0, length))) << length;
  }
}

}  // namespace
}  // namespace assay
