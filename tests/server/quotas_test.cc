#include "server/quotas.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "server/status_convert.h"
#include "tests/server/fake_serving.h"
#include "tests/support/fake_clock.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class QuotasTest : public testing::Test {
 protected:
  Quotas With(int max_concurrent, double tokens_per_minute) {
    return Quotas({max_concurrent, tokens_per_minute}, clock_, metrics_);
  }
  // Enters, uses so many tokens and leaves.
  static absl::Status Use(Quotas& quotas, const std::string& client, size_t tokens) {
    absl::StatusOr<Quotas::Ticket> ticket = quotas.Enter(client);
    if (ticket.ok()) ticket->Charge(tokens);
    return ticket.status();
  }

  FakeClock clock_;
  Metrics metrics_{"test", "cpu"};
};

TEST_F(QuotasTest, RequestsAtOnceAreBoundedByClient) {
  Quotas quotas = With(2, 0);
  ASSERT_OK_AND_ASSIGN(Quotas::Ticket first, quotas.Enter("a"));
  {
    ASSERT_OK_AND_ASSIGN(const Quotas::Ticket second, quotas.Enter("a"));
    EXPECT_THAT(quotas.Enter("a").status(),
                StatusIs(StatusCode::kResourceExhausted, HasSubstr("auth.max_concurrent=2")));
    EXPECT_OK(quotas.Enter("b").status());
  }
  EXPECT_OK(quotas.Enter("a").status());  // the second has left
  Quotas::Ticket moved = std::move(first);
  moved = Quotas::Ticket();  // a ticket leaves once, wherever it went
  ASSERT_OK_AND_ASSIGN(const Quotas::Ticket third, quotas.Enter("a"));
  ASSERT_OK_AND_ASSIGN(const Quotas::Ticket fourth, quotas.Enter("a"));
  EXPECT_FALSE(quotas.Enter("a").ok());
  EXPECT_THAT(metrics_.Scrape(), HasSubstr("assay_quota_rejected_total{quota=\"concurrency\"} 2"));
}

TEST_F(QuotasTest, AMinutesTokensMayBeUsedAtOnce) {
  Quotas quotas = With(0, 60);
  EXPECT_OK(Use(quotas, "a", 59));
  EXPECT_OK(Use(quotas, "a", 1));
  EXPECT_THAT(Use(quotas, "a", 0),
              StatusIs(StatusCode::kResourceExhausted, HasSubstr("auth.tokens_per_minute=60")));
  EXPECT_OK(Use(quotas, "b", 1));
  clock_.Advance(absl::Seconds(2));
  EXPECT_OK(Use(quotas, "a", 0));
  EXPECT_THAT(metrics_.Scrape(), HasSubstr("assay_quota_rejected_total{quota=\"tokens\"} 1"));
}

TEST_F(QuotasTest, ADebtIsPaidBackByTime) {
  Quotas quotas = With(0, 60);
  EXPECT_OK(Use(quotas, "a", 90));  // 30 too many
  EXPECT_FALSE(Use(quotas, "a", 0).ok());
  clock_.Advance(absl::Seconds(30));
  EXPECT_FALSE(Use(quotas, "a", 0).ok());  // 0 is nothing yet
  clock_.Advance(absl::Seconds(2));
  EXPECT_OK(Use(quotas, "a", 0));
}

TEST_F(QuotasTest, TimeFillsNoMoreThanAMinutesWorth) {
  Quotas quotas = With(0, 60);
  EXPECT_OK(Use(quotas, "a", 0));
  clock_.Advance(absl::Hours(10));
  EXPECT_OK(Use(quotas, "a", 60));
  EXPECT_FALSE(Use(quotas, "a", 0).ok());
}

TEST_F(QuotasTest, TheClientIsToldWhenToComeAgain) {
  Quotas quotas = With(0, 60);
  EXPECT_OK(Use(quotas, "a", 64));  // 4 too many, and one is needed: 5 seconds
  const absl::Status refused = Use(quotas, "a", 0);
  const absl::optional<absl::Cord> retry = refused.GetPayload("assay.retry_after_ms");
  ASSERT_TRUE(retry.has_value());
  EXPECT_EQ(std::string(*retry), "5000");
}

TEST_F(QuotasTest, ClientsThatHaveAllTheirQuotaAreForgotten) {
  Quotas quotas = With(1, 60);
  ASSERT_OK_AND_ASSIGN(const Quotas::Ticket stays, quotas.Enter("stays"));
  EXPECT_OK(Use(quotas, "owes", 1000));
  for (int i = 0; i < 10000; ++i) EXPECT_OK(Use(quotas, absl::StrCat("one of many ", i), 0));
  EXPECT_LE(quotas.num_clients(), 4096u);
  EXPECT_FALSE(quotas.Enter("stays").ok());
  EXPECT_FALSE(quotas.Enter("owes").ok());
}

TEST_F(QuotasTest, NothingIsRememberedWhereNothingIsBounded) {
  Quotas quotas = With(0, 0);
  EXPECT_OK(Use(quotas, "a", 1000000));
  EXPECT_OK(Use(quotas, "a", 1));
  EXPECT_EQ(quotas.num_clients(), 0u);
}

// ---- what requests use

class QuotaOfRequestsTest : public testing::Test {
 protected:
  QuotaOfRequestsTest()
      : serving_({.admin = AdminAccess::kOn, .auth = {.tokens_per_minute = 8}}),
        assay_(assay::v1::AssayService::NewStub(serving_.channel())) {}

  absl::Status Generate(const std::string& prompt, int max_tokens) {
    assay::v1::GenerateRequest request;
    request.set_model("text");
    request.set_prompt(prompt);
    request.mutable_sampling()->set_max_tokens(max_tokens);
    grpc::ClientContext context;
    const auto stream = assay_->Generate(&context, request);
    assay::v1::GenerateResponse response;
    while (stream->Read(&response)) {
    }
    return FromGrpc(stream->Finish());
  }
  absl::Status Embed(const std::string& text) {
    assay::v1::EmbedRequest request;
    request.set_model("embed");
    request.add_texts(text);
    assay::v1::EmbedResponse response;
    grpc::ClientContext context;
    return FromGrpc(assay_->Embed(&context, request, &response));
  }
  // ModelInfer of "text".
  absl::Status Infer(const std::string& prompt, int max_tokens) {
    const auto stub = inference::GRPCInferenceService::NewStub(serving_.channel());
    inference::ModelInferRequest request;
    request.set_model_name("text");
    auto& input = *request.add_inputs();
    input.set_name("text_input");
    input.set_datatype("BYTES");
    input.add_shape(1);
    input.mutable_contents()->add_bytes_contents(prompt);
    (*request.mutable_parameters())["max_tokens"].set_int64_param(max_tokens);
    inference::ModelInferResponse response;
    grpc::ClientContext context;
    return FromGrpc(stub->ModelInfer(&context, request, &response));
  }

  FakeServing serving_;
  const std::unique_ptr<assay::v1::AssayService::Stub> assay_;
};

// A token of the fake tokenizer is a letter. At 8 a minute, what time fills in meanwhile is far
// below one token: whoever has used 8 has none.
TEST_F(QuotaOfRequestsTest, PromptsAndAnswersAreCharged) {
  EXPECT_OK(Generate("abcd", 3));
  EXPECT_OK(Generate("a", 1));  // 7 were used
  EXPECT_THAT(Generate("a", 1), StatusIs(StatusCode::kResourceExhausted));
}

TEST_F(QuotaOfRequestsTest, EmbeddingsAreCharged) {
  EXPECT_OK(Embed("abcdefgh"));
  EXPECT_THAT(Embed("a"), StatusIs(StatusCode::kResourceExhausted));
}

TEST_F(QuotaOfRequestsTest, TheOpenProtocolIsChargedTheSame) {
  EXPECT_OK(Infer("abcd", 4));
  EXPECT_THAT(Infer("a", 1), StatusIs(StatusCode::kResourceExhausted));
}

TEST_F(QuotaOfRequestsTest, WhatIsRefusedCostsNothing) {
  for (int i = 0; i < 20; ++i) EXPECT_FALSE(Generate("abcd", -1).ok());
  EXPECT_OK(Generate("a", 1));
}

// ---- tokenizing takes a place, too

TEST(QuotaOfTokenizingTest, ItTakesAPlaceUntilItIsDone) {
  FakeServing serving({.admin = AdminAccess::kOn, .auth = {.max_concurrent = 1}});
  const auto assay = assay::v1::AssayService::NewStub(serving.channel());
  const auto tokenize = [&assay](size_t bytes) {
    assay::v1::TokenizeRequest request;
    request.set_model("text");
    request.set_text(std::string(bytes, 'a'));
    assay::v1::TokenizeResponse response;
    grpc::ClientContext context;
    return FromGrpc(assay->Tokenize(&context, request, &response));
  };
  HeldTexts held(serving.texts());
  std::thread first([&] { EXPECT_OK(tokenize(TextWorkers::kShortBytes + 1)); });
  while (serving.context().quotas.num_clients() < 1) std::this_thread::yield();
  const absl::Status second = tokenize(1);
  EXPECT_THAT(second, StatusIs(StatusCode::kResourceExhausted));
  assay::v1::DetokenizeRequest back;
  back.set_model("text");
  assay::v1::DetokenizeResponse text;
  grpc::ClientContext context;
  EXPECT_THAT(FromGrpc(assay->Detokenize(&context, back, &text)),
              StatusIs(StatusCode::kResourceExhausted));
  held.Release();
  first.join();
  ASSERT_TRUE(serving.gate().WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
  EXPECT_OK(tokenize(1));
}

}  // namespace
}  // namespace assay
