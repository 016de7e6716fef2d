#include <gmock/gmock.h>

#include <deque>
#include <random>
#include <thread>

#include "base/thread_pool.h"
#include "engine/runtime/engine.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_model.h"
#include "tests/support/fake_model_metrics.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using Code = absl::StatusCode;

class ResultRecorder {
 public:
  EncodeSink NewSink() {
    MutexLock lock(mu_);
    Slot& slot = slots_.emplace_back();
    return [this, &slot](EncodeResult&& result) {
      MutexLock lock(mu_);
      EXPECT_FALSE(slot.done) << "a second result";
      slot.done = true;
      slot.result = std::move(result);
      ++num_done_;
      changed_.NotifyAll();
    };
  }
  int num_done() const {
    MutexLock lock(mu_);
    return num_done_;
  }
  std::vector<EncodeResult> WaitForAll() {
    MutexLock lock(mu_);
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (num_done_ < static_cast<int>(slots_.size()) && changed_.WaitUntil(mu_, until)) {
    }
    EXPECT_EQ(num_done_, static_cast<int>(slots_.size()));
    std::vector<EncodeResult> results;
    for (const Slot& slot : slots_) results.push_back(slot.result);
    return results;
  }

 private:
  struct Slot {
    EncodeResult result;
    bool done = false;
  };
  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Slot> slots_ ABSL_GUARDED_BY(mu_);
  int num_done_ ABSL_GUARDED_BY(mu_) = 0;
};

EncodeRequest Request(int size, int32_t first) {
  EncodeRequest request;
  for (int i = 0; i < size; ++i) request.tokens.push_back((first + i) % 64);
  return request;
}

struct EncodeSetup {
  FakeModel::Options model = {.max_context = 64, .task = ModelTask::kEmbed};
  EngineOptions engine = {.max_sequences = 8, .max_queue = 100, .max_batch_tokens = 64};
};

class EncodeEngineTest : public testing::Test {
 protected:
  std::unique_ptr<EncodeEngine> Start(const EncodeSetup& setup) {
    model_ = std::make_shared<FakeModel>(setup.model);
    metrics_ = std::make_shared<FakeModelMetrics>();
    auto engine = EncodeEngine::Start(model_, setup.engine, {pool_, clock_, metrics_});
    EXPECT_OK(engine);
    return *std::move(engine);
  }
  absl::Status StartStatus(const EncodeSetup& setup) {
    return EncodeEngine::Start(std::make_shared<FakeModel>(setup.model), setup.engine,
                               {pool_, clock_, std::make_shared<FakeModelMetrics>()})
        .status();
  }
  // Holds the first step until the gate opens, and records the batches of the others.
  EncodeSetup Gated(StepGate& gate) {
    EncodeSetup setup;
    setup.model.before_step = [this, &gate](int step, const ForwardBatch& batch) {
      if (step == 0) return gate.Pass();
      MutexLock lock(mu_);
      std::vector<int32_t>& firsts = batches_.emplace_back();
      for (const SequenceSpan& s : batch.sequences) firsts.push_back(batch.tokens[s.first_row]);
    };
    return setup;
  }
  std::vector<std::vector<int32_t>> batches() {
    MutexLock lock(mu_);
    return batches_;
  }

  ThreadPool pool_{{.num_threads = 2}};
  FakeClock clock_;
  std::shared_ptr<FakeModel> model_;
  std::shared_ptr<FakeModelMetrics> metrics_;
  Mutex mu_;
  std::vector<std::vector<int32_t>> batches_ ABSL_GUARDED_BY(mu_);
};

TEST_F(EncodeEngineTest, GivesEachRequestItsOwnResult) {
  auto engine = Start({});
  ResultRecorder recorder;
  for (int i = 0; i < 50; ++i)
    ASSERT_OK(engine->Submit(Request(1 + i % 13, i), recorder.NewSink()));
  const auto results = recorder.WaitForAll();
  for (int i = 0; i < 50; ++i) {
    const EncodeRequest request = Request(1 + i % 13, i);
    float sum = 0;
    for (int32_t token : request.tokens) sum += static_cast<float>(token);
    EXPECT_OK(results[i].status);
    EXPECT_THAT(results[i].values, ElementsAre(static_cast<float>(request.tokens[0]), sum, 0.0f,
                                               static_cast<float>(request.tokens.size())));
    EXPECT_GE(results[i].batch_requests, 1);
  }
  EXPECT_EQ(metrics_->queued, 50);
  EXPECT_EQ(metrics_->step_requests, 50);
}

TEST_F(EncodeEngineTest, PacksByTokenBudgetInOrderOfUrgency) {
  StepGate gate;
  auto engine = Start(Gated(gate));
  ResultRecorder recorder;
  ASSERT_OK(engine->Submit(Request(1, 0), recorder.NewSink()));
  gate.WaitForArrival();
  const auto submit = [&](int size, int32_t first, absl::Duration deadline) {
    EncodeRequest request = Request(size, first);
    request.deadline = clock_.Now() + deadline;
    ASSERT_OK(engine->Submit(request, recorder.NewSink()));
  };
  submit(30, 1, absl::InfiniteDuration());
  submit(30, 2, absl::InfiniteDuration());
  submit(30, 3, absl::Seconds(2));
  submit(30, 4, absl::Seconds(1));
  gate.Open();
  recorder.WaitForAll();
  EXPECT_THAT(batches(), ElementsAre(ElementsAre(4, 3), ElementsAre(1, 2)));
}

TEST_F(EncodeEngineTest, BatchesHoldAtMostMaxSequences) {
  StepGate gate;
  auto engine = Start(Gated(gate));
  ResultRecorder recorder;
  ASSERT_OK(engine->Submit(Request(1, 0), recorder.NewSink()));
  gate.WaitForArrival();
  for (int i = 1; i <= 10; ++i) ASSERT_OK(engine->Submit(Request(1, i), recorder.NewSink()));
  gate.Open();
  recorder.WaitForAll();
  EXPECT_THAT(batches(), ElementsAre(SizeIs(8), SizeIs(2)));
}

TEST_F(EncodeEngineTest, WaitsForCompanyUpToTheDelay) {
  EncodeSetup setup;
  setup.engine.max_delay = absl::Seconds(30);
  auto engine = Start(setup);
  ResultRecorder recorder;
  ASSERT_OK(engine->Submit(Request(5, 1), recorder.NewSink()));
  ASSERT_OK(engine->Submit(Request(5, 2), recorder.NewSink()));
  EXPECT_EQ(model_->steps(), 0);
  clock_.Advance(absl::Seconds(31));
  ASSERT_OK(engine->Submit(Request(5, 3), recorder.NewSink()));  // also wakes the loop
  const auto results = recorder.WaitForAll();
  for (const EncodeResult& result : results) EXPECT_EQ(result.batch_requests, 3);
  EXPECT_EQ(results[0].queued, absl::Seconds(31));
}

TEST_F(EncodeEngineTest, AFullBatchDoesNotWait) {
  EncodeSetup setup;
  setup.engine.max_delay = absl::Seconds(30);
  auto engine = Start(setup);
  ResultRecorder recorder;
  ASSERT_OK(engine->Submit(Request(32, 1), recorder.NewSink()));
  ASSERT_OK(engine->Submit(Request(32, 2), recorder.NewSink()));
  for (const EncodeResult& result : recorder.WaitForAll()) EXPECT_EQ(result.batch_requests, 2);
}

TEST_F(EncodeEngineTest, ADeadlineShortensTheWait) {
  EncodeSetup setup;
  setup.engine.max_delay = absl::Seconds(30);
  auto engine = Start(setup);
  ResultRecorder recorder;
  EncodeRequest request = Request(5, 1);
  request.deadline = clock_.Now() + absl::Milliseconds(20);  // leaves after 10 ms
  ASSERT_OK(engine->Submit(request, recorder.NewSink()));
  clock_.Advance(absl::Milliseconds(10));
  engine->Cancel(999);  // unknown: only wakes the loop
  EXPECT_OK(recorder.WaitForAll()[0].status);
}

TEST_F(EncodeEngineTest, ExpiredRequestsCostNoCompute) {
  StepGate gate;
  auto engine = Start(Gated(gate));
  ResultRecorder recorder;
  ASSERT_OK(engine->Submit(Request(1, 0), recorder.NewSink()));
  gate.WaitForArrival();
  EncodeRequest late = Request(3, 1);
  late.deadline = clock_.Now() + absl::Seconds(1);
  ASSERT_OK(engine->Submit(late, recorder.NewSink()));
  clock_.Advance(absl::Seconds(1));
  gate.Open();
  EXPECT_THAT(recorder.WaitForAll()[1].status, StatusIs(Code::kDeadlineExceeded));
  engine->Drain();
  EXPECT_EQ(model_->steps(), 1);
  EXPECT_EQ(metrics_->deadline_in_queue, 1);
  EXPECT_THAT(engine->Submit(late, [](EncodeResult&&) {}), StatusIs(Code::kDeadlineExceeded));
}

TEST_F(EncodeEngineTest, CancelledRequestsAreNotComputed) {
  StepGate gate;
  auto engine = Start(Gated(gate));
  ResultRecorder recorder;
  ASSERT_OK_AND_ASSIGN(const SequenceId running, engine->Submit(Request(1, 0), recorder.NewSink()));
  gate.WaitForArrival();
  ASSERT_OK_AND_ASSIGN(const SequenceId waiting, engine->Submit(Request(1, 1), recorder.NewSink()));
  ASSERT_OK(engine->Submit(Request(1, 2), recorder.NewSink()));
  engine->Cancel(waiting);
  engine->Cancel(running);  // too late
  gate.Open();
  const auto results = recorder.WaitForAll();
  EXPECT_OK(results[0].status);
  EXPECT_THAT(results[1].status, StatusIs(Code::kCancelled));
  EXPECT_OK(results[2].status);
  EXPECT_THAT(batches(), ElementsAre(ElementsAre(2)));
  EXPECT_EQ(metrics_->cancelled_in_queue, 1);
}

TEST_F(EncodeEngineTest, PassesTokenTypes) {
  auto engine = Start({});
  ResultRecorder recorder;
  EncodeRequest request = Request(4, 1);
  request.token_types = {0, 0, 1, 1};
  ASSERT_OK(engine->Submit(request, recorder.NewSink()));
  EXPECT_EQ(recorder.WaitForAll()[0].values[2], 2);
}

TEST_F(EncodeEngineTest, RefusesWhatCannotRun) {
  auto engine = Start({});
  const EncodeSink sink = [](EncodeResult&&) { FAIL() << "a refused request has no result"; };
  EXPECT_THAT(engine->Submit({}, sink), StatusIs(Code::kInvalidArgument, HasSubstr("no tokens")));
  EXPECT_THAT(engine->Submit(Request(65, 0), sink),
              StatusIs(Code::kInvalidArgument, HasSubstr("tokens=65 context=64")));
  EXPECT_THAT(engine->Submit({.tokens = {1, 64}}, sink),
              StatusIs(Code::kInvalidArgument, HasSubstr("unknown token id 64 at position 1")));
  EXPECT_THAT(engine->Submit({.tokens = {1, 2}, .token_types = {0}}, sink),
              StatusIs(Code::kInvalidArgument, HasSubstr("token_types=1 tokens=2")));
  EXPECT_THAT(engine->Submit({.tokens = {1}, .token_types = {2}}, sink),
              StatusIs(Code::kInvalidArgument, HasSubstr("unknown token type 2")));
  EXPECT_EQ(metrics_->rejected, 5);
}

TEST_F(EncodeEngineTest, RefusesOptionsThatCannotWork) {
  EncodeSetup setup;
  setup.engine.max_batch_tokens = 63;
  EXPECT_THAT(StartStatus(setup),
              StatusIs(Code::kInvalidArgument, HasSubstr("max_batch_tokens=63 max_context=64")));
  setup = {};
  setup.engine.max_delay = absl::Hours(1);
  EXPECT_THAT(StartStatus(setup), StatusIs(Code::kInvalidArgument, HasSubstr("max_delay")));
  setup = {};
  setup.engine.max_queue = 0;
  EXPECT_THAT(StartStatus(setup), StatusIs(Code::kInvalidArgument, HasSubstr("max_queue=0")));
  setup = {};
  setup.model.task = ModelTask::kGenerate;
  EXPECT_THAT(StartStatus(setup), StatusIs(Code::kInvalidArgument, HasSubstr("not an encoder")));
}

TEST_F(EncodeEngineTest, AFullQueueRefuses) {
  StepGate gate;
  EncodeSetup setup = Gated(gate);
  setup.engine.max_queue = 2;
  auto engine = Start(setup);
  ResultRecorder recorder;
  ASSERT_OK(engine->Submit(Request(1, 0), recorder.NewSink()));
  gate.WaitForArrival();
  ASSERT_OK(engine->Submit(Request(1, 1), recorder.NewSink()));
  ASSERT_OK(engine->Submit(Request(1, 2), recorder.NewSink()));
  EXPECT_THAT(engine->Submit(Request(1, 3), [](EncodeResult&&) {}),
              StatusIs(Code::kResourceExhausted, HasSubstr("waiting=2 max_queue=2")));
  EXPECT_EQ(engine->load().waiting, 2);
  EXPECT_EQ(engine->load().running, 1);
  gate.Open();
  recorder.WaitForAll();
}

TEST_F(EncodeEngineTest, WhoHasWaitedTooLongIsRefused) {
  StepGate gate;
  EncodeSetup setup = Gated(gate);
  setup.engine.max_queue_wait = absl::Seconds(5);
  auto engine = Start(setup);
  ResultRecorder recorder;
  EncodeRequest row = Request(1, 2);
  row.follows = true;
  ASSERT_OK(engine->Submit(Request(1, 0), recorder.NewSink()));
  gate.WaitForArrival();
  ASSERT_OK(engine->Submit(Request(1, 1), recorder.NewSink()));
  ASSERT_OK(engine->Submit(row, recorder.NewSink()));
  clock_.Advance(absl::Seconds(6));
  gate.Open();
  const auto results = recorder.WaitForAll();
  EXPECT_OK(results[0].status);
  EXPECT_THAT(results[1].status,
              StatusIs(Code::kResourceExhausted, HasSubstr("waited 6s in the queue")));
  EXPECT_OK(results[2].status);
}

TEST_F(EncodeEngineTest, AFailedBatchEndsItsRequestsAndTheEngineGoesOn) {
  EncodeSetup setup;
  setup.model.fail_at_step = 0;
  auto engine = Start(setup);
  ResultRecorder recorder;
  ASSERT_OK(engine->Submit(Request(3, 1), recorder.NewSink()));
  EXPECT_THAT(recorder.WaitForAll()[0].status,
              StatusIs(Code::kInternal, HasSubstr("told to fail")));
  ASSERT_OK(engine->Submit(Request(3, 1), recorder.NewSink()));
  EXPECT_OK(recorder.WaitForAll()[1].status);
}

TEST_F(EncodeEngineTest, DrainDoesNotWaitForCompany) {
  EncodeSetup setup;
  setup.engine.max_delay = absl::Seconds(50);
  auto engine = Start(setup);
  ResultRecorder recorder;
  for (int i = 0; i < 3; ++i) ASSERT_OK(engine->Submit(Request(3, i), recorder.NewSink()));
  engine->Drain();
  EXPECT_EQ(recorder.num_done(), 3);
  for (const EncodeResult& result : recorder.WaitForAll()) EXPECT_OK(result.status);
  EXPECT_THAT(engine->Submit(Request(1, 1), [](EncodeResult&&) {}),
              StatusIs(Code::kUnavailable, HasSubstr("draining")));
}

TEST_F(EncodeEngineTest, DestructionEndsEveryRequestOnce) {
  EncodeSetup setup;
  setup.engine.max_delay = absl::Seconds(50);
  auto engine = Start(setup);
  ResultRecorder recorder;
  for (int i = 0; i < 5; ++i) ASSERT_OK(engine->Submit(Request(3, i), recorder.NewSink()));
  engine.reset();
  for (const EncodeResult& result : recorder.WaitForAll())
    EXPECT_THAT(result.status, StatusIs(Code::kUnavailable));
}

TEST_F(EncodeEngineTest, StormOfSubmitsAndCancelsEndsEveryRequestExactlyOnce) {
  EncodeSetup setup;
  setup.engine.max_queue = 1000;
  auto engine = Start(setup);
  ResultRecorder recorder;
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      std::minstd_rand random(c + 1);
      for (int i = 0; i < 200; ++i) {
        auto id =
            engine->Submit(Request(1 + static_cast<int>(random() % 30), i), recorder.NewSink());
        ASSERT_OK(id);
        if (random() % 3 == 0) engine->Cancel(*id);
      }
    });
  }
  for (std::thread& client : clients) client.join();
  engine->Drain();
  EXPECT_EQ(recorder.num_done(), 800);
  for (const EncodeResult& result : recorder.WaitForAll())
    EXPECT_THAT(result.status.code(), testing::AnyOf(Code::kOk, Code::kCancelled));
}

}  // namespace
}  // namespace assay
