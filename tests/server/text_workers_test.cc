#include "server/text_workers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "base/retry_after.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::ElementsAre;

constexpr size_t kLong = TextWorkers::kShortBytes + 1;

TEST(TextWorkersTest, ShortTextsAreTheCallersWork) {
  TextWorkers workers(1);
  std::thread::id ran_on;
  (void)workers.Run(TextWorkers::kShortBytes, [&ran_on] { ran_on = std::this_thread::get_id(); });
  EXPECT_EQ(ran_on, std::this_thread::get_id());
}

TEST(TextWorkersTest, LongTextsHoldNeitherTheCallerNorShortOnes) {
  std::promise<void> go;
  std::promise<std::thread::id> long_ran_on;
  bool short_ran = false;
  {
    TextWorkers workers(1);
    (void)workers.Run(kLong, [&] {
      go.get_future().wait();
      long_ran_on.set_value(std::this_thread::get_id());
    });
    (void)workers.Run(1, [&short_ran] { short_ran = true; });
    EXPECT_TRUE(short_ran);
    go.set_value();
  }
  EXPECT_NE(long_ran_on.get_future().get(), std::this_thread::get_id());
}

TEST(TextWorkersTest, TheDestructorRunsWhatWaitsInOrder) {
  std::vector<int> order;
  {
    TextWorkers workers(1);
    for (int i = 0; i < 3; ++i) (void)workers.Run(kLong, [&order, i] { order.push_back(i); });
  }
  EXPECT_THAT(order, ElementsAre(0, 1, 2));
}

TEST(TextWorkersTest, EveryThreadWorks) {
  std::promise<void> first, second;  // each waits for the other: one thread alone would hang
  std::atomic<int> ran{0};
  {
    TextWorkers workers(2);
    (void)workers.Run(kLong, [&] {
      first.set_value();
      second.get_future().wait();
      ++ran;
    });
    (void)workers.Run(kLong, [&] {
      first.get_future().wait();
      second.set_value();
      ++ran;
    });
  }
  EXPECT_EQ(ran, 2);
}

TEST(TextWorkersTest, WhatWaitsIsBoundedByItsBytes) {
  constexpr size_t kHalf = TextWorkers::kMaxWaitingBytes / 2;
  std::promise<void> started, go;
  int ran = 0;
  {
    TextWorkers workers(1);
    EXPECT_OK(workers.Run(kLong, [&] {
      started.set_value();
      go.get_future().wait();
    }));
    started.get_future().wait();  // it no longer waits
    EXPECT_OK(workers.Run(kHalf, [&] { ++ran; }));
    EXPECT_OK(workers.Run(kHalf, [&] { ++ran; }));
    const absl::Status refused = workers.Run(kLong, [&] { ran += 100; });
    EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                  testing::HasSubstr("bytes=67108864 max=67108864")));
    EXPECT_TRUE(RetryAfter(refused).has_value());
    EXPECT_OK(workers.Run(1, [&] { ++ran; }));  // waits for nobody
    go.set_value();
  }
  EXPECT_EQ(ran, 3);
}

// Else a limit on messages above the bound could not be used.
TEST(TextWorkersTest, OneTextMayBeLongerThanWhatMayWait) {
  int ran = 0;
  {
    TextWorkers workers(1);
    EXPECT_OK(workers.Run(TextWorkers::kMaxWaitingBytes + 1, [&] { ++ran; }));
  }
  EXPECT_EQ(ran, 1);
}

}  // namespace
}  // namespace assay
