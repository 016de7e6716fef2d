// Load on a running server, closed loop: N clients, each sends its next request when the last one
// has ended. Bounded in time. This file is also the documented client: what a program that talks to
// assay.v1 has to do is in Generate() and Embed().
//
//   loadtest_client --server 127.0.0.1:8001 --model smollm2 --what generate --clients 8 --seconds
//   20 [--cancel 0.1]
//
// Prints one JSON object: requests, errors by status code, tokens per second, percentiles of the
// latencies in milliseconds.
// --what generate  streaming generation; TTFT and inter-token latency as the client sees them
//        embed     one text per request
//        live      ServerLive: the cost of a call that computes nothing
// --cancel F       share of requests that the client cancels after its third message
#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/mutex.h"
#include "loadtest/calls.h"
#include "proto/assay/v1/assay.grpc.pb.h"
#include "proto/open_inference/grpc_service.grpc.pb.h"

namespace assay {
namespace {

using SteadyClock = std::chrono::steady_clock;
using Instant = SteadyClock::time_point;

struct Options {
  std::string server = "127.0.0.1:8001", model = "smollm2", what = "generate";
  int clients = 1, seconds = 10, prompt_words = 16, max_tokens = 64;
  double cancel = 0, deadline_s = 0;
};

// What one client saw. Merged at the end, so the hot path takes no lock.
struct Tally {
  std::map<std::string, int64_t> outcomes;  // "OK", "CANCELLED (ours)", or the status code's name
  std::string first_error;
  int64_t tokens = 0;
  std::vector<double> latency_ms, first_ms, gap_ms;
};

double Milliseconds(Instant from, Instant to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

// Texts that differ from request to request, so that no prefix cache helps.
std::string Words(int client, int64_t request, int count) {
  static const char* const kWords[] = {"river",  "stone",  "light",  "engine", "garden", "winter",
                                       "paper",  "silver", "market", "music",  "bridge", "cloud",
                                       "forest", "letter", "number", "ocean"};
  uint64_t state =
      static_cast<uint64_t>(client) * 1000003u + static_cast<uint64_t>(request) * 7919u + 1;
  std::string text;
  for (int i = 0; i < count; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    text += kWords[state >> 60];
    text += ' ';
  }
  return text;
}

class Client {
 public:
  Client(const Options& options, int index, const std::shared_ptr<grpc::Channel>& channel)
      : options_(options),
        index_(index),
        assay_(v1::AssayService::NewStub(channel)),
        inference_(inference::GRPCInferenceService::NewStub(channel)) {}

  void Run(Instant until) {
    for (int64_t request = 0; SteadyClock::now() < until; ++request) {
      grpc::ClientContext context;
      if (options_.deadline_s > 0) {
        context.set_deadline(
            std::chrono::system_clock::now() +
            std::chrono::milliseconds(static_cast<int64_t>(options_.deadline_s * 1000)));
      }
      cancelled_ = false;
      const Instant start = SteadyClock::now();
      grpc::Status status;
      if (options_.what == "generate") status = Generate(context, request, start);
      if (options_.what == "embed") status = Embed(context, request);
      if (options_.what == "live") status = Live(context);
      Record(status, Milliseconds(start, SteadyClock::now()));
    }
  }
  const Tally& tally() const { return tally_; }

 private:
  grpc::Status Generate(grpc::ClientContext& context, int64_t request, Instant start) {
    v1::GenerateRequest message;
    message.set_model(options_.model);
    message.set_prompt(Words(index_, request, options_.prompt_words));
    message.mutable_sampling()->set_max_tokens(options_.max_tokens);
    message.mutable_sampling()->set_ignore_eos(true);
    const bool give_up =
        options_.cancel > 0 && (request * 37 + index_ * 11) % 100 < options_.cancel * 100;
    const auto stream = assay_->Generate(&context, message);
    v1::GenerateResponse response;
    Instant last = start;
    for (int messages = 0; stream->Read(&response); ++messages) {
      const Instant now = SteadyClock::now();
      if (response.tokens_size() > 0) {
        (last == start ? tally_.first_ms : tally_.gap_ms).push_back(Milliseconds(last, now));
        last = now;
        tally_.tokens += response.tokens_size();
      }
      if (give_up && messages == 2) {
        cancelled_ = true;
        context.TryCancel();
      }
    }
    return stream->Finish();
  }

  grpc::Status Embed(grpc::ClientContext& context, int64_t request) {
    v1::EmbedRequest message;
    message.set_model(options_.model);
    message.add_texts(Words(index_, request, options_.prompt_words));
    v1::EmbedResponse response;
    const grpc::Status status = assay_->Embed(&context, message, &response);
    if (status.ok()) tally_.tokens += response.embeddings(0).tokens();
    return status;
  }

  grpc::Status Live(grpc::ClientContext& context) {
    inference::ServerLiveResponse response;
    return inference_->ServerLive(&context, {}, &response);
  }

  void Record(const grpc::Status& status, double latency_ms) {
    const bool ours = cancelled_ && status.error_code() == grpc::StatusCode::CANCELLED;
    tally_.outcomes[ours ? "CANCELLED (ours)" : load::CodeName(status.error_code())]++;
    if (status.ok()) {
      tally_.latency_ms.push_back(latency_ms);
    } else if (!ours && tally_.first_error.empty()) {
      tally_.first_error = status.error_message();
    }
  }

  const Options& options_;
  const int index_;
  const std::unique_ptr<v1::AssayService::Stub> assay_;
  const std::unique_ptr<inference::GRPCInferenceService::Stub> inference_;
  bool cancelled_ = false;
  Tally tally_;
};

nlohmann::ordered_json Percentiles(std::vector<double>& values) {
  if (values.empty()) return nullptr;
  std::sort(values.begin(), values.end());
  const auto at = [&](double q) {
    return values[static_cast<size_t>(q * static_cast<double>(values.size() - 1))];
  };
  return {{"p50", at(0.5)}, {"p95", at(0.95)}, {"p99", at(0.99)}, {"max", values.back()}};
}

void Append(std::vector<double>& to, const std::vector<double>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

nlohmann::ordered_json Run(const Options& options) {
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < options.clients; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("assay.loadtest.client", i / 16);  // a connection for every 16 clients
    clients.push_back(std::make_unique<Client>(
        options, i,
        grpc::CreateCustomChannel(options.server, grpc::InsecureChannelCredentials(), arguments)));
  }
  const Instant start = SteadyClock::now(), until = start + std::chrono::seconds(options.seconds);
  std::vector<std::thread> threads;
  for (const auto& client : clients) threads.emplace_back([&client, until] { client->Run(until); });
  for (std::thread& thread : threads) thread.join();
  const double elapsed_s = Milliseconds(start, SteadyClock::now()) / 1000;
  Tally sum;
  for (const auto& client : clients) {
    const Tally& tally = client->tally();
    for (const auto& [code, count] : tally.outcomes) sum.outcomes[code] += count;
    if (sum.first_error.empty()) sum.first_error = tally.first_error;
    sum.tokens += tally.tokens;
    Append(sum.latency_ms, tally.latency_ms);
    Append(sum.first_ms, tally.first_ms);
    Append(sum.gap_ms, tally.gap_ms);
  }
  int64_t requests = 0;
  for (const auto& [code, count] : sum.outcomes) requests += count;
  nlohmann::ordered_json json{{"what", options.what},
                              {"clients", options.clients},
                              {"seconds", elapsed_s},
                              {"requests", requests},
                              {"requests_per_s", static_cast<double>(requests) / elapsed_s},
                              {"tokens_per_s", static_cast<double>(sum.tokens) / elapsed_s},
                              {"outcomes", sum.outcomes},
                              {"latency_ms", Percentiles(sum.latency_ms)}};
  if (!sum.first_ms.empty()) json["time_to_first_token_ms"] = Percentiles(sum.first_ms);
  if (!sum.gap_ms.empty()) json["inter_token_ms"] = Percentiles(sum.gap_ms);
  if (!sum.first_error.empty()) json["first_error"] = sum.first_error;
  return json;
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  assay::Options options;
  CLI::App app(
      "Closed-loop load on a running server; prints one JSON object. Exit 1 when a request "
      "failed.");
  app.add_option("--server", options.server, "host:port of the gRPC service")
      ->capture_default_str();
  app.add_option("--model", options.model, "model to ask")->capture_default_str();
  app.add_option("--what", options.what, "generate, embed or live")
      ->check(CLI::IsMember({"generate", "embed", "live"}))
      ->capture_default_str();
  app.add_option("--clients", options.clients, "concurrent clients")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--seconds", options.seconds, "duration")
      ->check(CLI::Range(1, 3600))
      ->capture_default_str();
  app.add_option("--prompt-words", options.prompt_words, "words per prompt or text")
      ->capture_default_str();
  app.add_option("--max-tokens", options.max_tokens, "tokens to generate")->capture_default_str();
  app.add_option("--cancel", options.cancel, "share of streams that the client cancels")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--deadline", options.deadline_s, "deadline of each request in seconds, 0 = none");
  CLI11_PARSE(app, argc, argv);
  const nlohmann::ordered_json result = assay::Run(options);
  std::cout << result.dump(2) << std::endl;
  for (const auto& [code, count] : result["outcomes"].items()) {
    if (code != "OK" && code != "CANCELLED (ours)") return 1;
  }
  return 0;
}
