#include "server/text_workers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

namespace assay {
namespace {

using testing::ElementsAre;

constexpr size_t kLong = TextWorkers::kShortBytes + 1;

TEST(TextWorkersTest, ShortTextsAreTheCallersWork) {
  TextWorkers workers(1);
  std::thread::id ran_on;
  workers.Run(TextWorkers::kShortBytes, [&ran_on] { ran_on = std::this_thread::get_id(); });
  EXPECT_EQ(ran_on, std::this_thread::get_id());
}

TEST(TextWorkersTest, LongTextsHoldNeitherTheCallerNorShortOnes) {
  std::promise<void> go;
  std::promise<std::thread::id> long_ran_on;
  bool short_ran = false;
  {
    TextWorkers workers(1);
    workers.Run(kLong, [&] {
      go.get_future().wait();
      long_ran_on.set_value(std::this_thread::get_id());
    });
    workers.Run(1, [&short_ran] { short_ran = true; });
    EXPECT_TRUE(short_ran);
    go.set_value();
  }
  EXPECT_NE(long_ran_on.get_future().get(), std::this_thread::get_id());
}

TEST(TextWorkersTest, TheDestructorRunsWhatWaitsInOrder) {
  std::vector<int> order;
  {
    TextWorkers workers(1);
    for (int i = 0; i < 3; ++i) workers.Run(kLong, [&order, i] { order.push_back(i); });
  }
  EXPECT_THAT(order, ElementsAre(0, 1, 2));
}

TEST(TextWorkersTest, EveryThreadWorks) {
  std::promise<void> first, second;  // each waits for the other: one thread alone would hang
  std::atomic<int> ran{0};
  {
    TextWorkers workers(2);
    workers.Run(kLong, [&] {
      first.set_value();
      second.get_future().wait();
      ++ran;
    });
    workers.Run(kLong, [&] {
      first.get_future().wait();
      second.set_value();
      ++ran;
    });
  }
  EXPECT_EQ(ran, 2);
}

}  // namespace
}  // namespace assay
