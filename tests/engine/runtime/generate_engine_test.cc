#include <thread>

#include "tests/engine/runtime/generate_engine_fixture.h"

namespace assay {
namespace {

using ::testing::HasSubstr;
using Code = absl::StatusCode;

TEST_F(GenerateEngineTest, GeneratesUntilMaxTokens) {
  const auto stream = Alone(Request(5, 1, 7));
  EXPECT_EQ(stream.tokens.size(), 7u);
  EXPECT_EQ(stream.text.size(), 7u);
  EXPECT_OK(stream.end.status);
  EXPECT_EQ(stream.end.reason, FinishReason::kLength);
  EXPECT_EQ(stream.end.usage.prompt_tokens, 5);
  EXPECT_EQ(stream.end.usage.generated_tokens, 7);
  EXPECT_EQ(metrics_->first_tokens, 1);
  EXPECT_EQ(metrics_->inter_tokens, 6);
  EXPECT_EQ(metrics_->prompt_tokens, 5);
  EXPECT_EQ(metrics_->generated_tokens, 7);
  EXPECT_EQ(metrics_->queued, 1);
  EXPECT_EQ(metrics_->finished[static_cast<int>(FinishReason::kLength)], 1);
}

TEST_F(GenerateEngineTest, TheFirstTokenIsOfTheTraceOfItsRequest) {
  GenerateRequest request = Request(5, 1, 2);
  Alone(request);
  EXPECT_EQ(metrics_->traced_first_tokens, 0);
  request.trace = {1, 2};
  Alone(request);
  EXPECT_EQ(metrics_->traced_first_tokens, 1);
}

TEST_F(GenerateEngineTest, StopsAtAnEndTokenWithoutItsText) {
  const auto free = Alone(Request(5, 1, 20));
  EngineSetup setup;
  setup.end_tokens = {free.tokens[4]};
  GenerateRequest request = Request(5, 1, 20);
  request.sampling.ignore_eos = false;
  const auto stream = Alone(request, setup);
  const size_t first = std::ranges::find(free.tokens, free.tokens[4]) - free.tokens.begin();
  EXPECT_EQ(stream.tokens.size(), first + 1);
  EXPECT_EQ(stream.text, free.text.substr(0, first));
  EXPECT_EQ(stream.end.reason, FinishReason::kStop);
  EXPECT_EQ(stream.end.usage.generated_tokens, static_cast<int>(first) + 1);
}

TEST_F(GenerateEngineTest, StopsAtAStopTokenOfTheRequest) {
  GenerateRequest request = Request(5, 1, 20);
  const auto free = Alone(request);
  request.sampling.stop_token_ids = {free.tokens[3]};
  const auto stream = Alone(request);
  EXPECT_EQ(stream.tokens.back(), free.tokens[3]);
  EXPECT_EQ(stream.end.reason, FinishReason::kStop);
  EXPECT_LE(stream.tokens.size(), 4u);
}

TEST_F(GenerateEngineTest, StopsBeforeAStopString) {
  GenerateRequest request = Request(5, 1, 20);
  const auto free = Alone(request);
  request.sampling.stop = {free.text.substr(6, 3)};
  const auto stream = Alone(request);
  EXPECT_EQ(stream.end.reason, FinishReason::kStop);
  EXPECT_EQ(stream.text, free.text.substr(0, free.text.find(request.sampling.stop[0])));
  EXPECT_EQ(stream.tokens.size(), stream.text.size() + 3);
}

TEST_F(GenerateEngineTest, HeldTextComesWithTheLastToken) {
  GenerateRequest request = Request(5, 1, 6);
  const auto free = Alone(request);
  request.sampling.stop = {free.text.substr(4, 2) + "?"};  // begins, never completes
  EXPECT_EQ(Alone(request).text, free.text);
}

TEST_F(GenerateEngineTest, ReportsLogprobsOfTheChosenAndTheAlternatives) {
  GenerateRequest request = Request(5, 1, 3);
  request.sampling.logprobs = 4;
  auto engine = Start({});
  StreamRecorder recorder;
  ASSERT_OK(engine->Submit(request, recorder.NewSink()));
  const auto stream = recorder.WaitForAll()[0];
  ASSERT_EQ(stream.events.size(), 3u);
  for (const TokenEvent& e : stream.events) {
    ASSERT_EQ(e.top.size(), 4u);
    EXPECT_EQ(e.top[0].first, e.token);  // greedy
    EXPECT_EQ(e.top[0].second, e.logprob);
    EXPECT_LT(e.top[1].second, e.logprob);
    EXPECT_LT(e.logprob, 0);
  }
}

TEST_F(GenerateEngineTest, RefusesWhatCannotRun) {
  auto engine = Start({});
  const TokenSink sink = [](TokenEvent&&) { FAIL() << "a refused request has no events"; };
  EXPECT_THAT(engine->Submit({}, sink), StatusIs(Code::kInvalidArgument, HasSubstr("empty")));
  EXPECT_THAT(engine->Submit(Request(200, 1, 57), sink),
              StatusIs(Code::kInvalidArgument, HasSubstr("prompt=200 max_tokens=57 context=256")));
  EXPECT_EQ(metrics_->last_reject_reason, static_cast<int>(RejectReason::kTooLarge));
  EXPECT_THAT(engine->Submit({.prompt = {1, 64}}, sink),
              StatusIs(Code::kInvalidArgument, HasSubstr("unknown token id 64 at position 1")));
  EXPECT_THAT(engine->Submit({.prompt = {-1}}, sink),
              StatusIs(Code::kInvalidArgument, HasSubstr("unknown token id -1")));
  GenerateRequest bad = Request(1, 1, 1);
  bad.sampling.top_p = 1.5f;
  EXPECT_THAT(engine->Submit(bad, sink),
              StatusIs(Code::kInvalidArgument, HasSubstr("top_p=1.5 is outside [0, 1]")));
  GenerateRequest late = Request(1, 1, 1);
  late.deadline = clock_.Now();
  EXPECT_THAT(engine->Submit(late, sink), StatusIs(Code::kDeadlineExceeded));
  EXPECT_EQ(metrics_->rejected, 5);
  EXPECT_EQ(metrics_->deadline_in_queue, 1);
}

TEST_F(GenerateEngineTest, RefusesOptionsThatCannotWork) {
  EngineSetup setup;
  setup.engine.max_sequences = 0;
  EXPECT_THAT(StartStatus(setup), StatusIs(Code::kInvalidArgument, HasSubstr("max_sequences=0")));
  setup = {};
  setup.engine.max_context = -1;
  EXPECT_THAT(StartStatus(setup), StatusIs(Code::kInvalidArgument, HasSubstr("max_context=-1")));
  setup = {};
  setup.engine.kv_bytes = 4 * 256;  // 4 blocks of 2 * 16 * 4 f16
  setup.engine.max_context = 65;
  EXPECT_THAT(StartStatus(setup), StatusIs(Code::kInvalidArgument, HasSubstr("bytes needed=1280")));
  setup = {};
  setup.engine.kv_format = DType::kBf16;
  EXPECT_THAT(StartStatus(setup), StatusIs(Code::kInvalidArgument, HasSubstr("kv_dtype=bf16")));
  setup = {};
  setup.model.task = ModelTask::kEmbed;
  EXPECT_THAT(StartStatus(setup), StatusIs(Code::kInvalidArgument, HasSubstr("generative")));
}

TEST_F(GenerateEngineTest, ASmallPoolBoundsTheContextAndSaysSo) {
  EngineSetup setup;
  setup.engine.kv_bytes = 4 * 256;
  auto engine = Start(setup);
  EXPECT_EQ(engine->kv_bytes(), 1024u);
  EXPECT_THAT(engine->Submit(Request(40, 1, 25), [](TokenEvent&&) {}),
              StatusIs(Code::kInvalidArgument, HasSubstr("context=64")));
}

TEST_F(GenerateEngineTest, TheSeedDecidesTheTokens) {
  GenerateRequest request = Request(5, 1, 20);
  request.sampling.temperature = 1;
  request.sampling.seed = 1;
  const auto first = Alone(request);
  EXPECT_EQ(Alone(request).tokens, first.tokens);
  request.sampling.seed = 2;
  EXPECT_NE(Alone(request).tokens, first.tokens);
}

TEST_F(GenerateEngineTest, CancelEndsAtTheNextStep) {
  StepGate gate;
  EngineSetup setup;
  setup.model.before_step = [&](int step, const ForwardBatch&) {
    if (step == 3) gate.Pass();
  };
  auto engine = Start(setup);
  StreamRecorder recorder;
  ASSERT_OK_AND_ASSIGN(const SequenceId id, engine->Submit(Request(4, 1, 50), recorder.NewSink()));
  gate.WaitForArrival();
  engine->Cancel(id);
  engine->Cancel(id);
  gate.Open();
  const auto stream = recorder.WaitForAll()[0];
  EXPECT_EQ(stream.tokens.size(), 4u);  // the step that was running is delivered
  EXPECT_THAT(stream.end.status, StatusIs(Code::kCancelled));
  EXPECT_EQ(stream.end.reason, FinishReason::kCancelled);
  engine->Cancel(id);
  engine->Drain();
  EXPECT_EQ(metrics_->cancelled_in_compute, 1);
  EXPECT_EQ(engine->load().kv_blocks_used, 0);
}

TEST_F(GenerateEngineTest, AFullQueueRefuses) {
  StepGate gate;
  EngineSetup setup;
  setup.model.before_step = [&](int, const ForwardBatch&) { gate.Pass(); };
  setup.engine.max_sequences = 1;
  setup.engine.max_queue = 3;
  auto engine = Start(setup);
  StreamRecorder recorder;
  ASSERT_OK(engine->Submit(Request(4, 1, 2), recorder.NewSink()));
  gate.WaitForArrival();  // the loop is inside the first step and cannot take anything in
  absl::Status status;
  int accepted = 0;
  for (; accepted < 10; ++accepted) {
    status = engine->Submit(Request(4, 1, 2), recorder.NewSink()).status();
    if (!status.ok()) break;
  }
  EXPECT_THAT(status, StatusIs(Code::kResourceExhausted, HasSubstr("waiting=3 max_queue=3")));
  EXPECT_LE(accepted, 3);
  EXPECT_EQ(metrics_->last_reject_reason, static_cast<int>(RejectReason::kQueueFull));
  recorder.Forget(1);
  gate.Open();
  for (const auto& stream : recorder.WaitForAll()) EXPECT_OK(stream.end.status);
}

TEST_F(GenerateEngineTest, WhoHasWaitedTooLongIsRefusedAndWhoRunsIsNot) {
  EngineSetup setup;
  setup.engine.max_sequences = 1;
  setup.engine.max_queue_wait = absl::Seconds(5);
  setup.model.before_step = [&](int, const ForwardBatch&) { clock_.Advance(absl::Seconds(1)); };
  auto engine = Start(setup);
  StreamRecorder recorder;
  GenerateRequest row = Request(4, 3, 1);
  row.follows = true;
  ASSERT_OK(engine->Submit(Request(4, 1, 10), recorder.NewSink()));  // ten steps of a second
  ASSERT_OK(engine->Submit(Request(4, 2, 1), recorder.NewSink()));
  ASSERT_OK(engine->Submit(row, recorder.NewSink()));
  const auto streams = recorder.WaitForAll();
  EXPECT_OK(streams[0].end.status);
  EXPECT_EQ(streams[0].tokens.size(), 10u);
  EXPECT_THAT(streams[1].end.status,
              StatusIs(Code::kResourceExhausted, HasSubstr("longer than max_queue_wait")));
  EXPECT_TRUE(streams[1].tokens.empty());
  EXPECT_OK(streams[2].end.status);  // a later row of a request waits as long as it must
  EXPECT_EQ(metrics_->last_reject_reason, static_cast<int>(RejectReason::kQueueFull));
}

TEST_F(GenerateEngineTest, WithoutABoundOnWaitingRequestsWait) {
  EngineSetup setup;
  setup.engine.max_sequences = 1;
  setup.engine.max_queue_wait = absl::ZeroDuration();
  setup.model.before_step = [&](int, const ForwardBatch&) { clock_.Advance(absl::Hours(1)); };
  auto engine = Start(setup);
  StreamRecorder recorder;
  ASSERT_OK(engine->Submit(Request(4, 1, 10), recorder.NewSink()));
  ASSERT_OK(engine->Submit(Request(4, 2, 1), recorder.NewSink()));
  for (const auto& stream : recorder.WaitForAll()) EXPECT_OK(stream.end.status);
}

// One slot, one second a step, one step a request: behind seven others one would wait seven
// seconds, which the engine knows once it has served some.
TEST_F(GenerateEngineTest, WhoWouldWaitTooLongIsRefusedAtOnce) {
  StepGate first, eighth;
  EngineSetup setup;
  setup.engine.max_sequences = 1;
  setup.engine.max_queue_wait = absl::Seconds(5);
  setup.model.before_step = [&](int step, const ForwardBatch&) {
    clock_.Advance(absl::Seconds(1));
    if (step == 0) first.Pass();
    if (step == 7) eighth.Pass();
  };
  auto engine = Start(setup);
  StreamRecorder recorder;
  GenerateRequest row = Request(4, 1, 1);
  row.follows = true;
  for (int i = 0; i < 14; ++i) ASSERT_OK(engine->Submit(row, recorder.NewSink()));
  first.Open();
  eighth.WaitForArrival();  // seven have been served, seven are left
  EXPECT_THAT(engine->Submit(Request(4, 2, 1), [](TokenEvent&&) {}),
              StatusIs(Code::kResourceExhausted, HasSubstr("waiting=7 would take 7s")));
  eighth.Open();
  for (const auto& stream : recorder.WaitForAll()) EXPECT_OK(stream.end.status);
}

TEST_F(GenerateEngineTest, DeadlinesEndRunningAndWaitingRequests) {
  EngineSetup setup;
  setup.engine.max_sequences = 1;
  setup.model.before_step = [&](int, const ForwardBatch&) { clock_.Advance(absl::Seconds(1)); };
  auto engine = Start(setup);
  StreamRecorder recorder;
  GenerateRequest running = Request(4, 1, 100), waiting = Request(4, 2, 1);
  running.deadline = clock_.Now() + absl::Seconds(10);
  waiting.deadline = clock_.Now() + absl::Seconds(10) + absl::Milliseconds(1);
  ASSERT_OK(engine->Submit(running, recorder.NewSink()));
  ASSERT_OK(engine->Submit(waiting, recorder.NewSink()));
  const auto streams = recorder.WaitForAll();
  EXPECT_THAT(streams[0].end.status, StatusIs(Code::kDeadlineExceeded));
  EXPECT_EQ(streams[0].end.reason, FinishReason::kDeadline);
  EXPECT_EQ(streams[0].tokens.size(), 10u);
  engine->Drain();
  EXPECT_EQ(metrics_->deadline_in_compute, 1);
}

TEST_F(GenerateEngineTest, ExpiredRequestsCostNoCompute) {
  StepGate gate;
  EngineSetup setup;
  setup.engine.max_sequences = 1;
  setup.model.before_step = [&](int step, const ForwardBatch&) {
    if (step == 0) gate.Pass();
  };
  auto engine = Start(setup);
  StreamRecorder recorder;
  ASSERT_OK(engine->Submit(Request(4, 1, 2), recorder.NewSink()));
  gate.WaitForArrival();
  GenerateRequest late = Request(4, 2, 5);
  late.deadline = clock_.Now() + absl::Seconds(1);
  ASSERT_OK(engine->Submit(late, recorder.NewSink()));
  clock_.Advance(absl::Seconds(1));
  gate.Open();
  const auto streams = recorder.WaitForAll();
  EXPECT_OK(streams[0].end.status);
  EXPECT_THAT(streams[1].end.status, StatusIs(Code::kDeadlineExceeded));
  EXPECT_TRUE(streams[1].tokens.empty());
  engine->Drain();
  EXPECT_EQ(model_->steps(), 2);
  EXPECT_EQ(metrics_->deadline_in_queue, 1);
}

TEST_F(GenerateEngineTest, AFailedStepEndsItsRequestsAndTheEngineGoesOn) {
  EngineSetup setup;
  setup.model.fail_at_step = 3;
  auto engine = Start(setup);
  StreamRecorder recorder;
  ASSERT_OK(engine->Submit(Request(4, 1, 10), recorder.NewSink()));
  const auto failed = recorder.WaitForAll()[0];
  EXPECT_THAT(failed.end.status, StatusIs(Code::kInternal, HasSubstr("told to fail")));
  EXPECT_EQ(failed.end.reason, FinishReason::kError);
  EXPECT_EQ(failed.tokens.size(), 3u);
  StreamRecorder after;
  ASSERT_OK(engine->Submit(Request(4, 1, 10), after.NewSink()));
  EXPECT_OK(after.WaitForAll()[0].end.status);
  engine->Drain();
  EXPECT_EQ(engine->load().kv_blocks_used, 0);
}

TEST_F(GenerateEngineTest, NanLogitsEndOnlyTheirRequest) {
  StepGate gate;
  EngineSetup setup;
  setup.model.nan_at_step = 2;
  setup.model.before_step = [&](int step, const ForwardBatch&) {
    if (step == 0) gate.Pass();
  };
  auto engine = Start(setup);
  StreamRecorder recorder;
  ASSERT_OK(engine->Submit(Request(4, 1, 10), recorder.NewSink()));
  gate.WaitForArrival();
  ASSERT_OK(engine->Submit(Request(4, 2, 10), recorder.NewSink()));
  gate.Open();
  const auto streams = recorder.WaitForAll();
  EXPECT_THAT(streams[0].end.status,
              StatusIs(Code::kInternal, HasSubstr("logits at position 6 have a NaN")));
  EXPECT_OK(streams[1].end.status);
  EXPECT_EQ(streams[1].tokens.size(), 10u);
}

TEST_F(GenerateEngineTest, DrainFinishesWhatWasAcceptedAndRefusesTheRest) {
  auto engine = Start({});
  StreamRecorder recorder;
  for (int i = 0; i < 20; ++i) ASSERT_OK(engine->Submit(Request(4, i, 20), recorder.NewSink()));
  engine->Drain();
  EXPECT_EQ(recorder.num_ended(), 20);  // without waiting
  for (const auto& stream : recorder.WaitForAll()) EXPECT_OK(stream.end.status);
  EXPECT_THAT(engine->Submit(Request(1, 1, 1), [](TokenEvent&&) {}),
              StatusIs(Code::kUnavailable, HasSubstr("draining")));
  EXPECT_EQ(metrics_->last_reject_reason, static_cast<int>(RejectReason::kDraining));
  engine->Drain();  // again: returns at once
}

TEST_F(GenerateEngineTest, DestructionEndsEveryRequestOnce) {
  StepGate gate;
  EngineSetup setup;
  setup.engine.max_sequences = 2;
  setup.model.before_step = [&](int step, const ForwardBatch&) {
    if (step == 2) gate.Pass();
  };
  auto engine = Start(setup);
  StreamRecorder recorder;
  for (int i = 0; i < 10; ++i) ASSERT_OK(engine->Submit(Request(4, i, 200), recorder.NewSink()));
  gate.WaitForArrival();
  std::thread opener([&] { gate.Open(); });
  engine.reset();
  opener.join();
  EXPECT_EQ(recorder.num_ended(), 10);
  // Whatever the loop still finished before it saw the stop is whole.
  for (const auto& stream : recorder.WaitForAll())
    EXPECT_TRUE(absl::IsUnavailable(stream.end.status) || stream.tokens.size() == 200);
}

TEST_F(GenerateEngineTest, StormOfSubmitsAndCancelsEndsEveryRequestExactlyOnce) {
  EngineSetup setup;
  setup.engine = {
      .max_sequences = 6, .max_step_tokens = 24, .max_queue = 1000, .kv_bytes = 256 * 20};
  auto engine = Start(setup);
  StreamRecorder recorder;
  std::vector<std::thread> clients;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      std::minstd_rand random(c + 1);
      std::vector<SequenceId> mine;
      for (int i = 0; i < 100; ++i) {
        auto id = engine->Submit(Request(1 + static_cast<int>(random() % 40), i % 7,
                                         1 + static_cast<int>(random() % 40)),
                                 recorder.NewSink());
        ASSERT_OK(id);
        mine.push_back(*id);
        engine->Cancel(mine[random() % mine.size()]);
        engine->load();
      }
    });
  }
  for (std::thread& client : clients) client.join();
  engine->Drain();
  const auto streams = recorder.WaitForAll();
  ASSERT_EQ(streams.size(), 400u);
  int cancelled = 0;
  for (const auto& stream : streams) {
    cancelled += absl::IsCancelled(stream.end.status);
    EXPECT_THAT(stream.end.status.code(), testing::AnyOf(Code::kOk, Code::kCancelled));
  }
  EXPECT_GT(cancelled, 0);
  EXPECT_EQ(metrics_->cancelled_in_queue + metrics_->cancelled_in_compute, cancelled);
  EXPECT_EQ(engine->load().kv_blocks_used, 0);
  EXPECT_EQ(engine->load().running + engine->load().waiting, 0);
}

TEST_F(GenerateEngineTest, SeveralEnginesShareOnePool) {
  const auto expected = Alone(Request(20, 1, 30));
  auto a = Start({}), b = Start({});
  StreamRecorder recorder;
  for (int i = 0; i < 8; ++i) {
    ASSERT_OK(a->Submit(Request(20, 1, 30), recorder.NewSink()));
    ASSERT_OK(b->Submit(Request(20, 1, 30), recorder.NewSink()));
  }
  for (const auto& stream : recorder.WaitForAll()) EXPECT_EQ(stream.tokens, expected.tokens);
}

TEST_F(GenerateEngineTest, ReportsItsLoad) {
  StepGate arrivals, gate;
  EngineSetup setup;
  setup.engine.max_sequences = 2;
  setup.model.before_step = [&](int step, const ForwardBatch&) {
    if (step == 0) arrivals.Pass();
    if (step == 4) gate.Pass();
  };
  auto engine = Start(setup);
  StreamRecorder recorder;
  for (int i = 0; i < 5; ++i) ASSERT_OK(engine->Submit(Request(4, i, 30), recorder.NewSink()));
  arrivals.Open();
  gate.WaitForArrival();
  const EngineLoad load = engine->load();
  EXPECT_EQ(load.running + load.waiting, 5);
  EXPECT_EQ(load.running, 2);
  EXPECT_EQ(load.kv_blocks_used, 2);
  EXPECT_EQ(load.kv_blocks_total, 2 * 16);
  gate.Open();
  recorder.WaitForAll();
}

}  // namespace
}  // namespace assay
