#include "server/open_inference_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "server/status_convert.h"
#include "tests/server/fake_serving.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using Stub = inference::GRPCInferenceService::Stub;

inference::ModelInferRequest TextRequest(const std::string& model, const std::string& text,
                                         int max_tokens = 3) {
  inference::ModelInferRequest request;
  request.set_model_name(model);
  request.set_id("id-1");
  auto& input = *request.add_inputs();
  input.set_name("text_input");
  input.set_datatype("BYTES");
  input.add_shape(1);
  input.mutable_contents()->add_bytes_contents(text);
  if (max_tokens > 0) (*request.mutable_parameters())["max_tokens"].set_int64_param(max_tokens);
  return request;
}

// The texts of a raw BYTES output.
std::vector<std::string> Texts(const inference::ModelInferResponse& response, int output = 0) {
  std::vector<std::string> out;
  const std::string& raw = response.raw_output_contents(output);
  for (size_t at = 0; at + 4 <= raw.size();) {
    uint32_t length = 0;
    std::memcpy(&length, raw.data() + at, 4);
    out.push_back(raw.substr(at + 4, length));
    at += 4 + length;
  }
  return out;
}

class OpenInferenceServiceTest : public testing::Test {
 protected:
  template <typename Call>
  absl::Status Unary(Call call) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    return FromGrpc(call(context));
  }
  absl::Status Infer(const inference::ModelInferRequest& request) {
    return Unary([&](auto& c) { return stub_->ModelInfer(&c, request, &response_); });
  }
  FakeServing serving_;
  const std::unique_ptr<Stub> stub_ = inference::GRPCInferenceService::NewStub(serving_.channel());
  inference::ModelInferResponse response_;
};

TEST_F(OpenInferenceServiceTest, InfersTextAndEchoesTheId) {
  ASSERT_OK(Infer(TextRequest("text", "abc")));
  EXPECT_EQ(response_.id(), "id-1");
  EXPECT_EQ(response_.model_version(), "1");
  EXPECT_THAT(Texts(response_), ElementsAre("abc"));
  EXPECT_EQ(response_.parameters().at("finish_reason").string_param(), "length");
  EXPECT_EQ(response_.parameters().at("generated_tokens").int64_param(), 3);
}

TEST_F(OpenInferenceServiceTest, EveryRowOfABatchIsAnswered) {
  auto request = TextRequest("text", "a");
  auto& input = *request.mutable_inputs(0);
  input.mutable_contents()->add_bytes_contents("b");
  input.clear_shape();
  input.add_shape(2);
  input.add_shape(1);
  ASSERT_OK(Infer(request));
  EXPECT_THAT(Texts(response_), ElementsAre("abc", "abc"));
  EXPECT_THAT(response_.outputs(0).shape(), ElementsAre(2, 1));
}

TEST_F(OpenInferenceServiceTest, EmbedsTextsAndTokenIdsUnderAMask) {
  ASSERT_OK(Infer(TextRequest("embed", "bcd", 0)));
  const float* values = reinterpret_cast<const float*>(response_.raw_output_contents(0).data());
  EXPECT_THAT(response_.outputs(0).shape(), ElementsAre(1, 2));
  EXPECT_THAT(std::vector<float>(values, values + 2), ElementsAre(3, 1 + 2 + 3));

  inference::ModelInferRequest request;
  request.set_model_name("embed");
  for (const char* name : {"input_ids", "attention_mask"}) {
    auto& input = *request.add_inputs();
    input.set_name(name);
    input.set_datatype("INT64");
    input.add_shape(2);
    input.add_shape(2);
  }
  const int64_t ids[] = {5, 6, 7, 0}, mask[] = {1, 1, 1, 0};
  request.add_raw_input_contents(std::string(reinterpret_cast<const char*>(ids), sizeof(ids)));
  request.add_raw_input_contents(std::string(reinterpret_cast<const char*>(mask), sizeof(mask)));
  ASSERT_OK(Infer(request));
  const float* rows = reinterpret_cast<const float*>(response_.raw_output_contents(0).data());
  EXPECT_THAT(std::vector<float>(rows, rows + 4), ElementsAre(2, 11, 1, 7));
}

TEST_F(OpenInferenceServiceTest, ClassifiesWithLabels) {
  ASSERT_OK(Infer(TextRequest("classify", "aaa", 0)));  // logits [3, 0]
  EXPECT_EQ(response_.outputs(0).name(), "logits");
  EXPECT_THAT(Texts(response_, 1), ElementsAre("short"));
}

TEST_F(OpenInferenceServiceTest, OnlyRequestedOutputsComeBack) {
  auto request = TextRequest("classify", "aaa", 0);
  request.add_outputs()->set_name("label");
  ASSERT_OK(Infer(request));
  EXPECT_EQ(response_.outputs_size(), 1);
  EXPECT_EQ(response_.outputs(0).name(), "label");
  request.mutable_outputs(0)->set_name("nonsense");
  EXPECT_THAT(Infer(request),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("unexpected inference output 'nonsense' for model 'classify'")));
}

TEST_F(OpenInferenceServiceTest, RefusesInTritonsWords) {
  EXPECT_THAT(
      Infer(TextRequest("nobody", "a")),
      StatusIs(absl::StatusCode::kNotFound, "Request for unknown model: 'nobody' is not found"));
  auto version = TextRequest("text", "a");
  version.set_model_version("7");
  EXPECT_THAT(Infer(version), StatusIs(absl::StatusCode::kNotFound));
  version.set_model_version("latest");
  EXPECT_THAT(Infer(version), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("latest")));
  auto input = TextRequest("text", "a");
  input.mutable_inputs(0)->set_name("prompt");
  EXPECT_THAT(Infer(input),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("unexpected inference input 'prompt' for model 'text'")));
  auto shape = TextRequest("text", "a");
  shape.mutable_inputs(0)->add_shape(1);
  shape.mutable_inputs(0)->add_shape(1);
  EXPECT_THAT(Infer(shape), StatusIs(absl::StatusCode::kInvalidArgument,
                                     HasSubstr("unexpected shape for input 'text_input'")));
  EXPECT_THAT(Infer(TextRequest("text", "")), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(OpenInferenceServiceTest, ADeadlineEndsWaitingRequests) {
  serving_.engine().Hold();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  EXPECT_THAT(FromGrpc(stub_->ModelInfer(&context, TextRequest("text", "a"), &response_)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  serving_.engine().WaitForRunning(0);  // freed in the engine, too
}

TEST_F(OpenInferenceServiceTest, ATimeoutParameterEndsWaitingRequests) {
  serving_.engine().Hold();
  auto request = TextRequest("text", "a");
  (*request.mutable_parameters())["timeout"].set_int64_param(20000);
  EXPECT_THAT(Infer(request), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(OpenInferenceServiceTest, ACancelledUnaryCallFreesItsSlot) {
  serving_.engine().Hold();
  grpc::ClientContext context;
  grpc::CompletionQueue queue;
  const auto call = stub_->AsyncModelInfer(&context, TextRequest("text", "a"), &queue);
  grpc::Status status;
  call->Finish(&response_, &status, nullptr);
  serving_.engine().WaitForRunning(1);
  context.TryCancel();
  serving_.engine().WaitForRunning(0);
  EXPECT_EQ(serving_.engine().cancellations(), 1);
  void* tag = nullptr;
  bool ok = false;
  ASSERT_TRUE(queue.Next(&tag, &ok));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  queue.Shutdown();
}

TEST_F(OpenInferenceServiceTest, DrainingRefusesWithARetryHint) {
  serving_.gate().Close();
  grpc::ClientContext context;
  EXPECT_THAT(FromGrpc(stub_->ModelInfer(&context, TextRequest("text", "a"), &response_)),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1u);
}

TEST_F(OpenInferenceServiceTest, StreamsPiecesWithAFinalMark) {
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  ASSERT_TRUE(stream->Write(TextRequest("text", "a", 4)));
  std::string text;
  inference::ModelStreamInferResponse message;
  bool last = false;
  while (!last && stream->Read(&message)) {
    EXPECT_EQ(message.error_message(), "");
    EXPECT_EQ(message.infer_response().id(), "id-1");
    for (const std::string& piece : Texts(message.infer_response())) text += piece;
    last = message.infer_response().parameters().at("triton_final_response").bool_param();
  }
  EXPECT_EQ(text, "abcd");
  stream->WritesDone();
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_OK(FromGrpc(stream->Finish()));
}

TEST_F(OpenInferenceServiceTest, ErrorsGoInBandAndTheStreamGoesOn) {
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  ASSERT_TRUE(stream->Write(TextRequest("nobody", "a")));
  inference::ModelStreamInferResponse message;
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_THAT(message.error_message(), HasSubstr("unknown model: 'nobody'"));
  EXPECT_EQ(message.infer_response().id(), "id-1");
  auto whole = TextRequest("text", "a", 2);
  (*whole.mutable_parameters())["stream"].set_bool_param(false);
  ASSERT_TRUE(stream->Write(whole));
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_THAT(Texts(message.infer_response()), ElementsAre("ab"));
  stream->WritesDone();
  EXPECT_OK(FromGrpc(stream->Finish()));
}

TEST_F(OpenInferenceServiceTest, WithTheHeaderAnErrorEndsTheStream) {
  grpc::ClientContext context;
  context.AddMetadata("triton_grpc_error", "true");
  const auto stream = stub_->ModelStreamInfer(&context);
  ASSERT_TRUE(stream->Write(TextRequest("nobody", "a")));
  inference::ModelStreamInferResponse message;
  while (stream->Read(&message)) {
  }
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(OpenInferenceServiceTest, ManyRequestsOfOneStreamAreAllAnswered) {
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  constexpr int kRequests = 300;  // above max_requests_per_stream: reading pauses
  std::thread writer([&stream] {
    for (int i = 0; i < kRequests; ++i) {
      auto request = TextRequest("text", "a", 5);
      request.set_id(std::to_string(i));
      if (!stream->Write(request)) break;
    }
    stream->WritesDone();
  });
  std::map<std::string, std::string> texts;
  int finals = 0;
  inference::ModelStreamInferResponse message;
  while (stream->Read(&message)) {
    const auto& response = message.infer_response();
    for (const std::string& piece : Texts(response)) texts[response.id()] += piece;
    finals += response.parameters().at("triton_final_response").bool_param() ? 1 : 0;
  }
  writer.join();
  EXPECT_OK(FromGrpc(stream->Finish()));
  EXPECT_EQ(finals, kRequests);
  EXPECT_EQ(texts.size(), static_cast<size_t>(kRequests));
  for (const auto& [id, text] : texts) EXPECT_EQ(text, "abcde") << id;
}

TEST_F(OpenInferenceServiceTest, ACancelledStreamFreesEverySlot) {
  serving_.engine().Hold();
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(stream->Write(TextRequest("text", "a")));
  serving_.engine().WaitForRunning(5);
  context.TryCancel();
  serving_.engine().WaitForRunning(0);
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(OpenInferenceServiceTest, DrainLetsAStreamsRequestsFinishThenEndsIt) {
  serving_.engine().Hold();
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  ASSERT_TRUE(stream->Write(TextRequest("text", "a", 3)));
  serving_.engine().WaitForRunning(1);
  serving_.gate().Close();
  serving_.open_inference().Drain();
  serving_.engine().Release();
  std::string text;
  inference::ModelStreamInferResponse message;
  while (stream->Read(&message)) {
    for (const std::string& piece : Texts(message.infer_response())) text += piece;
  }
  EXPECT_EQ(text, "abc");
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(serving_.gate().WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
}

TEST_F(OpenInferenceServiceTest, DrainEndsAStreamThatHasSentAllItWantedWithOk) {
  serving_.engine().Hold();
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  ASSERT_TRUE(stream->Write(TextRequest("text", "a", 3)));
  ASSERT_TRUE(stream->WritesDone());
  serving_.engine().WaitForRunning(1);
  // Until the server has read the end of the stream it takes it for an open one.
  while (serving_.open_inference().open_streams() > 0) std::this_thread::yield();
  serving_.gate().Close();
  serving_.open_inference().Drain();
  serving_.engine().Release();
  inference::ModelStreamInferResponse message;
  std::string text;
  while (stream->Read(&message)) {
    for (const std::string& piece : Texts(message.infer_response())) text += piece;
  }
  EXPECT_EQ(text, "abc");
  EXPECT_OK(FromGrpc(stream->Finish()));
}

// A long request while each of its 100 texts fits the context.
inference::ModelInferRequest LongRequest() {
  auto request = TextRequest("text", std::string(700, 'a'), 3);
  for (int i = 1; i < 100; ++i) {
    request.mutable_inputs(0)->mutable_contents()->add_bytes_contents(std::string(700, 'a'));
  }
  request.mutable_inputs(0)->set_shape(0, 100);
  return request;
}

TEST_F(OpenInferenceServiceTest, ALongRequestOfAStreamIsStillAnsweredWhenItDrains) {
  HeldTexts held(serving_.texts());
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  ASSERT_TRUE(stream->Write(LongRequest()));
  while (serving_.gate().active() < 1) std::this_thread::yield();
  serving_.gate().Close();
  serving_.open_inference().Drain();
  EXPECT_FALSE(serving_.gate().WaitIdle(std::chrono::steady_clock::now()));
  held.Release();
  inference::ModelStreamInferResponse message;
  ASSERT_TRUE(stream->Read(&message));
  EXPECT_EQ(message.error_message(), "");
  EXPECT_THAT(Texts(message.infer_response()), testing::SizeIs(100));
  EXPECT_FALSE(stream->Read(&message));
  EXPECT_THAT(FromGrpc(stream->Finish()), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(OpenInferenceServiceTest, ACancelledLongRequestIsFreed) {
  serving_.engine().Hold();  // the server may hear of the cancellation only after held.Release()
  HeldTexts held(serving_.texts());
  grpc::ClientContext context;
  std::thread client([&] {
    inference::ModelInferResponse response;
    EXPECT_THAT(FromGrpc(stub_->ModelInfer(&context, LongRequest(), &response)),
                StatusIs(absl::StatusCode::kCancelled));
  });
  while (serving_.gate().active() < 1) std::this_thread::yield();
  context.TryCancel();
  client.join();
  held.Release();
  EXPECT_TRUE(serving_.gate().WaitIdle(std::chrono::steady_clock::now() + std::chrono::minutes(1)));
  EXPECT_THAT(
      serving_.metrics().Scrape(),
      HasSubstr(
          R"(assay_inference_requests_total{model="text",outcome="cancelled",version="1"} 1)"));
}

TEST_F(OpenInferenceServiceTest, DescribesModels) {
  inference::ModelMetadataRequest request;
  request.set_name("text");
  inference::ModelMetadataResponse metadata;
  ASSERT_OK(Unary([&](auto& c) { return stub_->ModelMetadata(&c, request, &metadata); }));
  EXPECT_EQ(metadata.platform(), "assay_llama");
  EXPECT_THAT(metadata.versions(), ElementsAre("1"));
  EXPECT_THAT(metadata.inputs(0).shape(), ElementsAre(-1, 1));
  EXPECT_EQ(metadata.properties().at("assay.scheme"), "int8_channel");
  request.set_name("nobody");
  EXPECT_THAT(Unary([&](auto& c) { return stub_->ModelMetadata(&c, request, &metadata); }),
              StatusIs(absl::StatusCode::kNotFound));

  inference::ModelConfigRequest config_request;
  config_request.set_name("embed");
  inference::ModelConfigResponse config;
  ASSERT_OK(Unary([&](auto& c) { return stub_->ModelConfig(&c, config_request, &config); }));
  EXPECT_EQ(config.config().input(0).data_type(), inference::TYPE_STRING);
  EXPECT_FALSE(config.config().model_transaction_policy().decoupled());
  EXPECT_TRUE(config.config().has_dynamic_batching());
}

TEST_F(OpenInferenceServiceTest, StatisticsGrow) {
  ASSERT_OK(Infer(TextRequest("embed", "abc", 0)));
  ASSERT_OK(Infer(TextRequest("embed", "abc", 0)));
  inference::ModelStatisticsRequest request;
  request.set_name("embed");
  inference::ModelStatisticsResponse response;
  ASSERT_OK(Unary([&](auto& c) { return stub_->ModelStatistics(&c, request, &response); }));
  ASSERT_EQ(response.model_stats_size(), 1);
  EXPECT_EQ(response.model_stats(0).inference_count(), 2u);
  EXPECT_EQ(response.model_stats(0).execution_count(), 1u);  // two requests in batches of two
  EXPECT_EQ(response.model_stats(0).inference_stats().success().count(), 2u);
  EXPECT_EQ(response.model_stats(0).batch_stats(0).batch_size(), 2u);
}

TEST_F(OpenInferenceServiceTest, HealthAgreesWithTheRegistry) {
  inference::ServerReadyResponse ready;
  ASSERT_OK(Unary([&](auto& c) { return stub_->ServerReady(&c, {}, &ready); }));
  EXPECT_TRUE(ready.ready());
  for (const auto& [name, expected] : {std::pair("text", true), std::pair("nobody", false)}) {
    inference::ModelReadyRequest request;
    request.set_name(name);
    inference::ModelReadyResponse response;
    ASSERT_OK(Unary([&](auto& c) { return stub_->ModelReady(&c, request, &response); }));
    EXPECT_EQ(response.ready(), expected) << name;
  }
}

TEST_F(OpenInferenceServiceTest, UnloadsAndShowsTheIndex) {
  inference::RepositoryModelUnloadRequest unload;
  unload.set_model_name("embed");
  inference::RepositoryModelUnloadResponse done;
  ASSERT_OK(Unary([&](auto& c) { return stub_->RepositoryModelUnload(&c, unload, &done); }));
  inference::RepositoryIndexResponse index;
  ASSERT_OK(Unary([&](auto& c) { return stub_->RepositoryIndex(&c, {}, &index); }));
  std::map<std::string, std::string> states;
  for (const auto& model : index.models()) states[model.name()] = model.state();
  EXPECT_EQ(states["embed"], "UNAVAILABLE");
  EXPECT_EQ(states["text"], "READY");
  unload.set_model_name("nobody");
  EXPECT_THAT(Unary([&](auto& c) { return stub_->RepositoryModelUnload(&c, unload, &done); }),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(OpenInferenceServiceTest, LoadingWithoutARepositorySaysSo) {
  inference::RepositoryModelLoadRequest load;
  load.set_model_name("other");
  inference::RepositoryModelLoadResponse done;
  EXPECT_THAT(Unary([&](auto& c) { return stub_->RepositoryModelLoad(&c, load, &done); }),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("no model repository")));
  (*load.mutable_parameters())["file:1/model"].set_bytes_param("evil");
  EXPECT_THAT(Unary([&](auto& c) { return stub_->RepositoryModelLoad(&c, load, &done); }),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("'file:1/model'")));
}

TEST_F(OpenInferenceServiceTest, SettingsAreReadableOnly) {
  inference::LogSettingsRequest request;
  inference::LogSettingsResponse response;
  ASSERT_OK(Unary([&](auto& c) { return stub_->LogSettings(&c, request, &response); }));
  EXPECT_TRUE(response.settings().at("log_error").bool_param());
  (*request.mutable_settings())["log_info"].set_bool_param(false);
  EXPECT_THAT(Unary([&](auto& c) { return stub_->LogSettings(&c, request, &response); }),
              StatusIs(absl::StatusCode::kUnimplemented));
  inference::TraceSettingResponse trace;
  ASSERT_OK(Unary([&](auto& c) { return stub_->TraceSetting(&c, {}, &trace); }));
  EXPECT_THAT(trace.settings().at("trace_level").value(), ElementsAre("OFF"));
  inference::SystemSharedMemoryStatusResponse shm;
  EXPECT_THAT(Unary([&](auto& c) { return stub_->SystemSharedMemoryStatus(&c, {}, &shm); }),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("shared memory")));
}

TEST_F(OpenInferenceServiceTest, TenThousandRandomNamesAddNoSeries) {
  const auto lines = [this] {
    const std::string scrape = serving_.metrics().Scrape();
    return std::count(scrape.begin(), scrape.end(), '\n');
  };
  Infer(TextRequest("nobody", "a")).IgnoreError();  // the series of the method and of its code
  const auto before = lines();
  std::mt19937_64 random(1);
  for (int i = 0; i < 10000; ++i) {
    EXPECT_THAT(Infer(TextRequest(absl::StrCat("model-", random()), "a")),
                StatusIs(absl::StatusCode::kNotFound));
  }
  EXPECT_EQ(lines(), before);
}

TEST_F(OpenInferenceServiceTest, EveryOutcomeIsCounted) {
  ASSERT_OK(Infer(TextRequest("text", "a")));
  auto bad = TextRequest("text", "a");
  bad.mutable_inputs(0)->set_name("prompt");
  Infer(bad).IgnoreError();
  Infer(TextRequest("nobody", "a")).IgnoreError();
  const std::string scrape = serving_.metrics().Scrape();
  const std::string requests = "assay_inference_requests_total{model=\"text\",outcome=";
  EXPECT_THAT(scrape, AllOf(HasSubstr(requests + "\"success\",version=\"1\"} 1"),
                            HasSubstr(requests + "\"rejected\",version=\"1\"} 1")));
  EXPECT_THAT(scrape, HasSubstr("assay_inference_requests_total{model=\"_unknown\","
                                "outcome=\"rejected\",version=\"0\"} 1"));
  EXPECT_THAT(scrape, HasSubstr("grpc_server_handled_total{grpc_code=\"NotFound\",grpc_method="
                                "\"ModelInfer\",grpc_service=\"inference.GRPCInferenceService\","
                                "grpc_type=\"unary\"} 1"));
}

}  // namespace
}  // namespace assay
