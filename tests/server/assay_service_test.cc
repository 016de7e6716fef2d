#include "server/assay_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/status_convert.h"
#include "tests/server/fake_serving.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class AssayServiceTest : public testing::Test {
 protected:
  static assay::v1::GenerateRequest Prompt(const std::string& model, int max_tokens) {
    assay::v1::GenerateRequest request;
    request.set_model(model);
    request.set_prompt("abc");
    request.mutable_sampling()->set_max_tokens(max_tokens);
    return request;
  }
  // All messages of a stream; its status.
  absl::Status Generate(const assay::v1::GenerateRequest& request) {
    grpc::ClientContext context;
    const auto stream = stub_->Generate(&context, request);
    assay::v1::GenerateResponse message;
    while (stream->Read(&message)) {
      text_ += message.text();
      tokens_ += message.tokens_size();
      last_ = message;
      if (message.tokens_size() > 0) token_ = message.tokens(0);
    }
    return FromGrpc(stream->Finish());
  }
  FakeServing serving_;
  const std::unique_ptr<assay::v1::AssayService::Stub> stub_ =
      assay::v1::AssayService::NewStub(serving_.channel());
  std::string text_;
  int tokens_ = 0;
  assay::v1::GenerateResponse last_;
  assay::v1::GeneratedToken token_;
};

TEST_F(AssayServiceTest, GeneratesWithUsageAtTheEnd) {
  ASSERT_OK(Generate(Prompt("text", 30)));
  EXPECT_EQ(text_, "abcdefghijklmnopqrstuvwxyzabcd");
  EXPECT_EQ(tokens_, 30);
  EXPECT_TRUE(last_.done());
  EXPECT_EQ(last_.finish_reason(), "length");
  EXPECT_EQ(last_.usage().prompt_tokens(), 3);
  EXPECT_EQ(last_.usage().generated_tokens(), 30);
  EXPECT_EQ(last_.model(), "text");
  EXPECT_FALSE(token_.has_logprob());
}

std::string Sampled(const std::string& trace) { return "00-" + trace + "-00f067aa0ba902b7-01"; }

TEST_F(AssayServiceTest, ATracedRequestIsTheExemplarOfItsBucket) {
  const auto embed = [this](std::initializer_list<std::string> traceparents) {
    grpc::ClientContext context;
    for (const std::string& one : traceparents) context.AddMetadata("traceparent", one);
    assay::v1::EmbedRequest request;
    request.set_model("embed");
    request.add_texts("abc");
    assay::v1::EmbedResponse response;
    return FromGrpc(stub_->Embed(&context, request, &response));
  };
  const std::string trace = "4bf92f3577b34da6a3ce929d0e0e4736";
  ASSERT_OK(embed({"00-0123456789abcdef0123456789abcdef-00f067aa0ba902b7-00"}));  // not sampled
  ASSERT_OK(embed({"00-x-y-z"}));
  ASSERT_OK(embed({Sampled(trace), Sampled("0123456789abcdef0123456789abcdef")}));  // which?
  EXPECT_THAT(serving_.metrics().Scrape(ExpositionFormat::kOpenMetrics),
              testing::Not(HasSubstr("trace_id")));
  ASSERT_OK(embed({Sampled(trace)}));
  EXPECT_THAT(serving_.metrics().Scrape(ExpositionFormat::kOpenMetrics),
              testing::ContainsRegex("request_duration_seconds_bucket[{]model=\"embed\"[^\n]* # "
                                     "[{]trace_id=\"" +
                                     trace + "\"[}]"));
}

TEST_F(AssayServiceTest, LogprobsComeWhenAskedFor) {
  auto request = Prompt("text", 1);
  request.mutable_sampling()->set_logprobs(1);
  ASSERT_OK(Generate(request));
  EXPECT_FLOAT_EQ(token_.logprob(), -0.5f);
  EXPECT_EQ(token_.top(0).text(), "a");
}

TEST_F(AssayServiceTest, RefusesWhatCannotBe) {
  EXPECT_THAT(Generate(Prompt("nobody", 1)), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(Generate(Prompt("embed", 1)),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("use Embed")));
  auto nothing = Prompt("text", 1);
  nothing.clear_input();
  EXPECT_THAT(Generate(nothing), StatusIs(absl::StatusCode::kInvalidArgument,
                                          HasSubstr("prompt, chat and prompt_ids")));
  auto top_p = Prompt("text", 1);
  top_p.mutable_sampling()->set_top_p(3);
  EXPECT_THAT(Generate(top_p), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("top_p")));
  auto role = Prompt("text", 1);
  role.mutable_chat()->add_messages()->set_role("wizard");
  EXPECT_THAT(Generate(role),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("unknown role 'wizard'")));
  auto chat = Prompt("text", 1);
  chat.mutable_chat()->add_messages()->set_role("user");
  EXPECT_THAT(Generate(chat), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(AssayServiceTest, ACancelledGenerationFreesItsSlot) {
  serving_.engine().Hold();
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, Prompt("text", 5));
  serving_.engine().WaitForRunning(1);
  context.TryCancel();
  serving_.engine().WaitForRunning(0);
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(serving_.engine().cancellations(), 1);
}

TEST_F(AssayServiceTest, AnExpiredGenerationFreesItsSlot) {
  serving_.engine().Hold();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  const auto stream = stub_->Generate(&context, Prompt("text", 5));
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  serving_.engine().WaitForRunning(0);
  // gRPC tells the server of a passed deadline as of a cancellation; the books know better.
  ASSERT_TRUE(serving_.gate().WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
  EXPECT_EQ(serving_.engine().cancellations(), 0);
  EXPECT_THAT(
      serving_.metrics().Scrape(),
      AllOf(HasSubstr(
                R"(assay_inference_requests_total{model="text",outcome="timeout",version="1"} 1)"),
            testing::ContainsRegex(R"(handled_total.*DeadlineExceeded.*"Generate".* 1)")));
}

TEST_F(AssayServiceTest, WhoDoesNotReadLosesItsSlotAndIsToldWhy) {
  grpc::ClientContext context;
  // In this process a message counts as sent once it is read. More tokens than anybody waits for.
  const auto stream = stub_->Generate(&context, Prompt("text", 100'000'000));
  serving_.engine().WaitForRunning(1);
  while (serving_.engine().cancellations() == 0) {
    serving_.Unread(absl::Minutes(2));  // the first message may not be on its way yet
    std::this_thread::yield();
  }
  serving_.engine().WaitForRunning(0);
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kResourceExhausted,
                                                   HasSubstr("limits.max_unread_time=20s")));
  ASSERT_TRUE(serving_.gate().WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
  EXPECT_THAT(serving_.metrics().Scrape(), HasSubstr("\nassay_grpc_unread_rpcs_total 1\n"));
}

TEST_F(AssayServiceTest, WhoReadsMayTakeLongOverAllOfIt) {
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, Prompt("text", 3));
  assay::v1::GenerateResponse message;
  // Each message and the status in time, all of them together not.
  do {
    serving_.Unread(absl::Seconds(9));
  } while (stream->Read(&message));
  EXPECT_OK(FromGrpc(stream->Finish()));
  EXPECT_THAT(serving_.metrics().Scrape(), HasSubstr("\nassay_grpc_unread_rpcs_total 0\n"));
}

// More than what gRPC's threads tokenize themselves; the fake engine takes any length.
assay::v1::GenerateRequest LongPrompt() {
  assay::v1::GenerateRequest request;
  request.set_model("text");
  for (size_t i = 0; i < TextWorkers::kShortBytes; ++i) request.mutable_prompt_ids()->add_ids(1);
  request.mutable_sampling()->set_max_tokens(3);
  return request;
}

TEST_F(AssayServiceTest, LongTextsHoldUpNobodyElse) {
  HeldTexts held(serving_.texts());
  // More of them than gRPC has threads.
  std::vector<std::thread> clients;
  std::atomic<int> answered{0};
  for (int i = 0; i < 40; ++i) {
    clients.emplace_back([this, &answered] {
      grpc::ClientContext context;
      const auto stream = stub_->Generate(&context, LongPrompt());
      assay::v1::GenerateResponse message;
      std::string text;
      while (stream->Read(&message)) text += message.text();
      answered += stream->Finish().ok() && text == "abc" ? 1 : 0;
    });
  }
  while (serving_.gate().active() < 40) std::this_thread::yield();
  ASSERT_OK(Generate(Prompt("text", 3)));
  EXPECT_EQ(text_, "abc");
  EXPECT_EQ(answered, 0);
  held.Release();
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(answered, 40);
}

TEST_F(AssayServiceTest, ALongTextWhoseClientGoesAwayFreesItsPlace) {
  serving_.engine().Hold();  // the server may hear of the cancellation only after held.Release()
  HeldTexts held(serving_.texts());
  grpc::ClientContext context;
  const auto stream = stub_->Generate(&context, LongPrompt());
  while (serving_.gate().active() < 1) std::this_thread::yield();
  context.TryCancel();
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kCancelled));
  grpc::ClientContext expired;
  expired.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  const auto late = stub_->Generate(&expired, LongPrompt());
  EXPECT_THAT(FromGrpc(late->Finish()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  held.Release();
  ASSERT_TRUE(serving_.gate().WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
  EXPECT_THAT(
      serving_.metrics().Scrape(),
      AllOf(
          HasSubstr(
              R"(assay_inference_requests_total{model="text",outcome="cancelled",version="1"} 1)"),
          HasSubstr(
              R"(assay_inference_requests_total{model="text",outcome="timeout",version="1"} 1)")));
}

// A model that nobody knows is counted when it is looked up: this one must not be.
TEST_F(AssayServiceTest, WhatNobodyWaitsForIsNotTokenized) {
  HeldTexts held(serving_.texts());
  assay::v1::TokenizeRequest request;
  request.set_model("nobody");
  request.set_text(std::string(TextWorkers::kShortBytes + 1, 'a'));
  assay::v1::TokenizeResponse response;
  grpc::ClientContext expired;
  expired.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_THAT(FromGrpc(stub_->Tokenize(&expired, request, &response)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  held.Release();
  ASSERT_TRUE(serving_.gate().WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
  EXPECT_THAT(
      serving_.metrics().Scrape(),
      HasSubstr(
          "assay_inference_rejected_total{model=\"_unknown\",reason=\"invalid\",version=\"0\"} 0"));
  grpc::ClientContext patient;
  EXPECT_THAT(FromGrpc(stub_->Tokenize(&patient, request, &response)),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(
      serving_.metrics().Scrape(),
      HasSubstr(
          "assay_inference_rejected_total{model=\"_unknown\",reason=\"invalid\",version=\"0\"} 1"));
}

TEST_F(AssayServiceTest, LongTextsOfEveryCallAreTheWorkers) {
  HeldTexts held(serving_.texts());
  assay::v1::TokenizeRequest tokenize;
  tokenize.set_model("text");
  tokenize.set_text(std::string(TextWorkers::kShortBytes + 1, 'a'));
  assay::v1::EmbedRequest embed;
  embed.set_model("embed");
  for (int i = 0; i < 700; ++i) embed.add_texts(std::string(100, 'a'));
  std::atomic<int> answered{0};
  std::thread tokenizes([&] {
    grpc::ClientContext context;
    assay::v1::TokenizeResponse response;
    EXPECT_OK(FromGrpc(stub_->Tokenize(&context, tokenize, &response)));
    EXPECT_GT(response.ids_size(), 0);
    ++answered;
  });
  std::thread embeds([&] {
    grpc::ClientContext context;
    assay::v1::EmbedResponse response;
    EXPECT_OK(FromGrpc(stub_->Embed(&context, embed, &response)));
    EXPECT_EQ(response.embeddings_size(), 700);
    ++answered;
  });
  while (serving_.gate().active() < 1) std::this_thread::yield();
  ASSERT_OK(Generate(Prompt("text", 1)));
  EXPECT_EQ(answered, 0);
  held.Release();
  tokenizes.join();
  embeds.join();
}

TEST_F(AssayServiceTest, SixtyFourStreamsAtOnceAreWhole) {
  std::vector<std::thread> clients;
  std::atomic<int> whole{0};
  for (int i = 0; i < 64; ++i) {
    clients.emplace_back([this, &whole] {
      grpc::ClientContext context;
      const auto stream = stub_->Generate(&context, Prompt("text", 52));
      assay::v1::GenerateResponse message;
      std::string text;
      while (stream->Read(&message)) text += message.text();
      const bool ok = stream->Finish().ok() && message.done() &&
                      text == "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz";
      whole += ok ? 1 : 0;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(whole, 64);
  EXPECT_TRUE(serving_.gate().WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
}

TEST_F(AssayServiceTest, EmbedsAndClassifies) {
  assay::v1::EmbedRequest request;
  request.set_model("classify");
  request.add_texts("aaa");
  request.add_texts("zzz");
  assay::v1::EmbedResponse response;
  grpc::ClientContext context;
  ASSERT_OK(FromGrpc(stub_->Embed(&context, request, &response)));
  ASSERT_EQ(response.embeddings_size(), 2);
  EXPECT_THAT(response.embeddings(0).values(), ElementsAre(3, 0));
  EXPECT_EQ(response.embeddings(0).label(), "short");
  EXPECT_EQ(response.embeddings(1).label(), "long");
  EXPECT_EQ(response.embeddings(1).tokens(), 3);
  request.clear_texts();
  grpc::ClientContext again;
  EXPECT_THAT(FromGrpc(stub_->Embed(&again, request, &response)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("0 texts")));
}

TEST_F(AssayServiceTest, TruncatesOnlyWhenAskedTo) {
  assay::v1::EmbedRequest request;
  request.set_model("embed");
  request.add_texts(std::string(100, 'a'));
  request.set_truncate(true);
  assay::v1::EmbedResponse response;
  grpc::ClientContext context;
  ASSERT_OK(FromGrpc(stub_->Embed(&context, request, &response)));
  EXPECT_EQ(response.embeddings(0).tokens(), 64);  // the fake's max_context
}

TEST_F(AssayServiceTest, TokenizesBothWays) {
  assay::v1::TokenizeRequest request;
  request.set_model("text");
  request.set_text("cab");
  assay::v1::TokenizeResponse response;
  grpc::ClientContext context;
  ASSERT_OK(FromGrpc(stub_->Tokenize(&context, request, &response)));
  EXPECT_THAT(response.ids(), ElementsAre(2, 0, 1));
  assay::v1::DetokenizeRequest back;
  back.set_model("text");
  *back.mutable_ids() = response.ids();
  assay::v1::DetokenizeResponse text;
  grpc::ClientContext again;
  ASSERT_OK(FromGrpc(stub_->Detokenize(&again, back, &text)));
  EXPECT_EQ(text.text(), "cab");
}

TEST_F(AssayServiceTest, AdmitsWithProgressAndReport) {
  assay::v1::AdmitRequest request;
  request.set_name("new");
  request.set_path("/somewhere/good");
  request.set_calibration("/somewhere/chats.jsonl");
  grpc::ClientContext context;
  const auto stream = stub_->Admit(&context, request);
  std::vector<std::string> stages;
  assay::v1::AdmitProgress progress;
  while (stream->Read(&progress)) stages.push_back(progress.stage());
  EXPECT_OK(FromGrpc(stream->Finish()));
  EXPECT_THAT(stages, ElementsAre("open", "done"));
  EXPECT_EQ(progress.verdict(), "admitted");
  EXPECT_THAT(progress.report_json(), HasSubstr("\"verdict\""));
  EXPECT_THAT(progress.report_json(), HasSubstr("/somewhere/chats.jsonl"));
  EXPECT_OK(Generate(Prompt("new", 1)));
}

TEST_F(AssayServiceTest, ARejectionNamesTheLayer) {
  assay::v1::AdmitRequest request;
  request.set_name("new");
  request.set_path("/somewhere/bad");
  grpc::ClientContext context;
  const auto stream = stub_->Admit(&context, request);
  assay::v1::AdmitProgress progress;
  while (stream->Read(&progress)) {
  }
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kFailedPrecondition,
                                                   HasSubstr("model.layers.0: mean KL")));
  EXPECT_EQ(progress.verdict(), "rejected");
  EXPECT_THAT(Generate(Prompt("new", 1)), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(AssayServiceTest, AdmissionIsForbiddenWhereAdministrationIsOff) {
  ServerConfig config;
  config.admin = AdminAccess::kOff;
  FakeServing serving(config);
  const auto stub = assay::v1::AssayService::NewStub(serving.channel());
  assay::v1::AdmitRequest request;
  request.set_path("/x");
  grpc::ClientContext context;
  const auto stream = stub->Admit(&context, request);
  assay::v1::AdmitProgress progress;
  EXPECT_FALSE(stream->Read(&progress));
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kPermissionDenied));
}

TEST_F(AssayServiceTest, ListsAndExplains) {
  assay::v1::ListModelsResponse models;
  grpc::ClientContext context;
  ASSERT_OK(FromGrpc(stub_->ListModels(&context, {}, &models)));
  std::map<std::string, std::string> tasks;
  for (const auto& model : models.models()) tasks[model.name()] = model.task();
  EXPECT_EQ(tasks["text"], "generate");
  EXPECT_EQ(tasks["classify"], "classify");
  EXPECT_TRUE(models.ready());
  assay::v1::ExplainPolicyResponse policy;
  grpc::ClientContext again;
  ASSERT_OK(FromGrpc(stub_->ExplainPolicy(&again, {}, &policy)));
  EXPECT_NE(policy.rule(), "");
  EXPECT_GT(policy.trace_size(), 0);
  assay::v1::ExplainPolicyRequest bad;
  bad.set_hardware_json("{");
  grpc::ClientContext third;
  EXPECT_THAT(FromGrpc(stub_->ExplainPolicy(&third, bad, &policy)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  assay::v1::GetReportRequest report;
  report.set_model("nobody");
  assay::v1::GetReportResponse text;
  grpc::ClientContext fourth;
  EXPECT_THAT(FromGrpc(stub_->GetReport(&fourth, report, &text)),
              StatusIs(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace assay
