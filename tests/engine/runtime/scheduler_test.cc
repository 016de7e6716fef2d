#include "engine/runtime/scheduler.h"

#include <gmock/gmock.h>

#include <map>
#include <random>

namespace assay {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

const absl::Time kStart = absl::UnixEpoch();

// Drives a scheduler as the engine would, with token 1 as every generated token.
class Driver {
 public:
  Driver(SchedulerOptions options, int num_blocks, bool prefix_cache = true)
      : kv_(num_blocks, prefix_cache), scheduler_(options, kv_) {}

  struct Request {
    int prompt = 1;
    int max_tokens = 1000;
    absl::Duration deadline = absl::InfiniteDuration();
  };
  SequenceId Add(const Request& request) {
    auto s = std::make_unique<Sequence>();
    s->id = ++last_id_;
    s->arrival = now;
    s->deadline = kStart + request.deadline;
    s->num_prompt = request.prompt;
    s->tokens.assign(request.prompt, static_cast<int32_t>(100 + s->id));
    s->sampling.max_tokens = request.max_tokens;
    scheduler_.Add(std::move(s));
    return last_id_;
  }

  struct Row {
    SequenceId id;
    int num_rows;
    bool sample;
    bool operator==(const Row&) const = default;
  };
  // One step; sequences that reached max_tokens are taken out.
  std::vector<Row> Step() {
    StepPlan& plan = scheduler_.Next(now);
    preempted += plan.num_preempted;
    for (const auto& s : plan.expired) expired.push_back(s->id);
    std::vector<Row> rows;
    for (const StepPlan::Rows& r : plan.rows) {
      EXPECT_EQ(r.sample, r.num_rows == r.sequence->num_pending());
      EXPECT_GE(r.sequence->kv.blocks.size(),
                KvCache::BlocksFor(r.sequence->num_computed + r.num_rows));
      rows.push_back({r.sequence->id, r.num_rows, r.sample});
      scheduler_.Advance(r);
      if (!r.sample) continue;
      Sequence& s = *r.sequence;
      s.tokens.push_back(1);
      if (s.num_generated() == s.sampling.max_tokens) finished.push_back(s.id);
    }
    for (SequenceId id : finished) scheduler_.Remove(id);
    return rows;
  }

  absl::Time now = kStart;
  int preempted = 0;
  std::vector<SequenceId> expired, finished;
  KvCache& kv() { return kv_; }
  Scheduler& scheduler() { return scheduler_; }

 private:
  KvCache kv_;
  Scheduler scheduler_;
  SequenceId last_id_ = 0;
};
using Row = Driver::Row;

std::ostream& operator<<(std::ostream& out, const Row& row) {
  return out << "{" << row.id << ", " << row.num_rows << ", " << row.sample << "}";
}

TEST(SchedulerTest, PromptThenOneTokenPerStep) {
  Driver d({.max_sequences = 4, .max_step_tokens = 64}, 16);
  d.Add({.prompt = 10});
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 10, true}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}));
}

TEST(SchedulerTest, EmptyPlanWhenThereIsNothingToDo) {
  Driver d({}, 16);
  EXPECT_THAT(d.Step(), IsEmpty());
  EXPECT_TRUE(d.scheduler().empty());
}

TEST(SchedulerTest, LongPromptsAreChunkedAndOnlyTheLastChunkSamples) {
  Driver d({.max_sequences = 4, .max_step_tokens = 8}, 16);
  d.Add({.prompt = 20});
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 8, false}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 8, false}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 4, true}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}));
}

TEST(SchedulerTest, DecodingComesFirstAndChunksFillTheRest) {
  Driver d({.max_sequences = 4, .max_step_tokens = 8}, 32);
  d.Add({.prompt = 3});
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 3, true}));
  d.Add({.prompt = 20});
  d.Add({.prompt = 4});
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}, Row{2, 7, false}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}, Row{2, 7, false}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}, Row{2, 6, true}, Row{3, 1, false}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}, Row{2, 1, true}, Row{3, 3, true}));
}

TEST(SchedulerTest, NewcomersAreTakenByDeadlineThenByArrival) {
  Driver d({.max_sequences = 1, .max_step_tokens = 64}, 16);
  d.Add({.prompt = 1, .max_tokens = 1});
  d.Add({.prompt = 1, .max_tokens = 1});
  d.Add({.prompt = 1, .max_tokens = 1, .deadline = absl::Seconds(9)});
  d.Add({.prompt = 1, .max_tokens = 1, .deadline = absl::Seconds(5)});
  d.Add({.prompt = 1, .max_tokens = 1, .deadline = absl::Seconds(9)});
  for (int i = 0; i < 5; ++i) d.Step();
  EXPECT_THAT(d.finished, ElementsAre(4, 3, 5, 1, 2));
}

TEST(SchedulerTest, DeadlinesCannotStarveALongPromptWithoutOne) {
  Driver d({.max_sequences = 2, .max_step_tokens = 16}, 64);
  const SequenceId patient = d.Add({.prompt = 500, .max_tokens = 1});
  // Every step brings more urgent work than a step can do.
  for (int step = 0; step < 400; ++step) {
    d.now += absl::Seconds(1);
    const absl::Duration deadline = d.now - kStart + absl::Seconds(20);
    for (int i = 0; i < 2; ++i) d.Add({.prompt = 8, .max_tokens = 2, .deadline = deadline});
    d.Step();
    if (std::ranges::count(d.finished, patient) > 0) return;
  }
  FAIL() << "the long prompt never ran";
}

TEST(SchedulerTest, ALongPromptProgressesBesideAFullHouseOfDecoders) {
  Driver d({.max_sequences = 8, .max_step_tokens = 8}, 64);
  for (int i = 0; i < 7; ++i) d.Add({.prompt = 1});
  d.Step();
  const SequenceId last = d.Add({.prompt = 40, .max_tokens = 1});
  for (int step = 0; step < 40; ++step) EXPECT_THAT(d.Step(), SizeIs(8));
  EXPECT_THAT(d.finished, ElementsAre(last));
}

TEST(SchedulerTest, NeverRunsMoreThanItsLimits) {
  Driver d({.max_sequences = 3, .max_step_tokens = 10}, 64);
  for (int i = 0; i < 9; ++i) d.Add({.prompt = 5, .max_tokens = 4});
  while (!d.scheduler().empty()) {
    int rows = 0;
    for (const Row& row : d.Step()) rows += row.num_rows;
    EXPECT_LE(rows, 10);
    EXPECT_LE(d.scheduler().num_running(), 3);
  }
  EXPECT_THAT(d.finished, SizeIs(9));
}

TEST(SchedulerTest, FewRowsLimitHowManyRun) {
  Driver d({.max_sequences = 64, .max_step_tokens = 2}, 64);
  for (int i = 0; i < 5; ++i) d.Add({.prompt = 3, .max_tokens = 3});
  for (int i = 0; i < 100 && !d.scheduler().empty(); ++i) {
    d.Step();
    EXPECT_LE(d.scheduler().num_running(), 2);
  }
  EXPECT_THAT(d.finished, SizeIs(5));
}

TEST(SchedulerTest, PreemptsTheYoungestWhenBlocksRunOut) {
  Driver d({.max_sequences = 4, .max_step_tokens = 64}, 4, /*prefix_cache=*/false);
  d.Add({.prompt = 16});
  d.Add({.prompt = 16});  // each needs a second block for its second row: 4 in use
  d.Step();
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}, Row{2, 1, true}));
  for (int i = 0; i < 15; ++i) d.Step();
  EXPECT_EQ(d.preempted, 0);
  EXPECT_EQ(d.kv().used_blocks(), 4);
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}));  // 1 needs a third block: 2 pays
  EXPECT_EQ(d.preempted, 1);
  EXPECT_EQ(d.scheduler().num_waiting(), 1);
}

TEST(SchedulerTest, ThePreemptedKeepsItsTokensAndGoesFirst) {
  Driver d({.max_sequences = 4, .max_step_tokens = 64}, 4, /*prefix_cache=*/false);
  d.Add({.prompt = 16, .max_tokens = 20});
  d.Add({.prompt = 16, .max_tokens = 30});
  for (int i = 0; i < 18; ++i) d.Step();
  ASSERT_EQ(d.preempted, 1);
  d.Add({.prompt = 16, .deadline = absl::Seconds(1)});  // more urgent, but behind the preempted
  d.Step();
  EXPECT_EQ(d.finished, std::vector<SequenceId>({}));
  d.Step();
  ASSERT_THAT(d.finished, ElementsAre(1));
  // 16 of the prompt and 17 generated are computed again; the last one's logits are sampled.
  const std::vector<Row> rows = d.Step();
  ASSERT_THAT(rows, testing::Not(IsEmpty()));
  EXPECT_EQ(rows[0], (Row{2, 33, true}));
}

TEST(SchedulerTest, ThePreemptedFindsItsBlocksInThePrefixCache) {
  Driver d({.max_sequences = 4, .max_step_tokens = 128}, 7);
  d.Add({.prompt = 40, .max_tokens = 10});
  d.Add({.prompt = 40, .max_tokens = 20});
  for (int i = 0; i < 10; ++i) d.Step();
  EXPECT_EQ(d.preempted, 1);
  ASSERT_THAT(d.finished, ElementsAre(1));
  // Its three full blocks survived: one token of 49 is left to compute.
  EXPECT_THAT(d.Step(), ElementsAre(Row{2, 1, true}));
}

TEST(SchedulerTest, WhereDecodeStepsDifferFromPrefillOnlyPromptsAreShared) {
  Driver d({.max_sequences = 4, .max_step_tokens = 128, .share_prompts_only = true}, 7);
  d.Add({.prompt = 40, .max_tokens = 10});
  d.Add({.prompt = 40, .max_tokens = 20});
  for (int i = 0; i < 10; ++i) d.Step();
  EXPECT_EQ(d.preempted, 1);
  ASSERT_THAT(d.finished, ElementsAre(1));
  // Two full blocks of the prompt survived, the one with generated tokens did not.
  EXPECT_THAT(d.Step(), ElementsAre(Row{2, 17, true}));
}

TEST(SchedulerTest, ExpiredRequestsLeaveBeforeTheyCostRows) {
  Driver d({.max_sequences = 1, .max_step_tokens = 64}, 16);
  d.Add({.prompt = 4, .deadline = absl::Seconds(2)});
  d.Add({.prompt = 4, .deadline = absl::Seconds(3)});
  d.Add({.prompt = 4});
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 4, true}));
  d.now += absl::Seconds(3);
  EXPECT_THAT(d.Step(), ElementsAre(Row{3, 4, true}));
  EXPECT_THAT(d.expired, ElementsAre(1, 2));
  EXPECT_EQ(d.kv().used_blocks(), 1);
}

TEST(SchedulerTest, NobodyOvertakesOneThatDoesNotFitYet) {
  Driver d({.max_sequences = 4, .max_step_tokens = 128}, 6);
  d.Add({.prompt = 33, .max_tokens = 3});
  d.Step();
  d.Add({.prompt = 64, .max_tokens = 1});
  d.Add({.prompt = 1, .max_tokens = 1});
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{1, 1, true}));
  EXPECT_THAT(d.Step(), ElementsAre(Row{2, 64, true}, Row{3, 1, true}));
}

TEST(SchedulerTest, RemoveFreesTheBlocksWhereverTheSequenceIs) {
  Driver d({.max_sequences = 1, .max_step_tokens = 64}, 16, /*prefix_cache=*/false);
  d.Add({.prompt = 20});
  d.Add({.prompt = 20});
  d.Step();
  EXPECT_EQ(d.scheduler().Remove(3), nullptr);
  EXPECT_EQ(d.scheduler().Remove(2)->id, 2u);
  EXPECT_EQ(d.scheduler().Remove(1)->id, 1u);
  EXPECT_EQ(d.scheduler().Remove(1), nullptr);
  EXPECT_EQ(d.kv().used_blocks(), 0);
  EXPECT_TRUE(d.scheduler().empty());
}

TEST(SchedulerTest, PrefixHitsSkipRows) {
  Driver d({.max_sequences = 4, .max_step_tokens = 64}, 16);
  auto first = std::make_unique<Sequence>(), second = std::make_unique<Sequence>();
  first->id = 101;
  second->id = 102;
  for (Sequence* s : {first.get(), second.get()}) {
    s->tokens.assign(40, 7);
    s->num_prompt = 40;
  }
  d.scheduler().Add(std::move(first));
  d.Step();
  Sequence* const reused = second.get();
  d.scheduler().Add(std::move(second));
  EXPECT_THAT(d.Step(), ElementsAre(Row{101, 1, true}, Row{102, 8, true}));
  EXPECT_EQ(reused->usage.cached_tokens, 32);
}

// Whatever arrives, everybody finishes, within the work that there is.
TEST(SchedulerTest, RandomLoadsAlwaysFinish) {
  int preempted = 0;
  for (uint32_t seed = 1; seed <= 30; ++seed) {
    std::minstd_rand random(seed);
    const int blocks = 8 + static_cast<int>(random() % 8);
    Driver d({.max_sequences = 1 + static_cast<int>(random() % 8),
              .max_step_tokens = 1 + static_cast<int>(random() % 40)},
             blocks, random() % 2 == 0);
    const int count = 40;
    for (int i = 0; i < count; ++i) {
      const int prompt = 1 + static_cast<int>(random() % (blocks * 8));
      d.Add({.prompt = prompt, .max_tokens = 1 + static_cast<int>(random() % (blocks * 8))});
      if (random() % 2 == 0) d.Step();
    }
    int steps = 0;
    while (!d.scheduler().empty() && steps < 200000) {
      ++steps;
      ASSERT_THAT(d.Step(), testing::Not(IsEmpty()));
    }
    EXPECT_THAT(d.finished, SizeIs(testing::Ge(count)));
    EXPECT_TRUE(d.scheduler().empty());
    EXPECT_EQ(d.kv().used_blocks(), 0);
    preempted += d.preempted;
  }
  EXPECT_GT(preempted, 20);
}

}  // namespace
}  // namespace assay
