// Sinks that record what an engine sends, and waiting for it. A second kEnd, or an event after it,
// fails the test. Thread-safe. Outlives the engine's requests.
#pragma once
#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "engine/runtime/sequence.h"

namespace assay {

class StreamRecorder {
 public:
  struct Stream {
    std::vector<TokenEvent> events;  // kToken
    std::vector<int32_t> tokens;
    std::string text;
    TokenEvent end;
    bool ended = false;
  };

  TokenSink NewSink() {
    MutexLock lock(mu_);
    Stream& stream = streams_.emplace_back();
    return [this, &stream](TokenEvent&& event) { Record(stream, std::move(event)); };
  }
  // The last `count` sinks were not accepted.
  void Forget(int count) {
    MutexLock lock(mu_);
    streams_.resize(streams_.size() - count);
  }
  int num_events() const {
    MutexLock lock(mu_);
    return num_events_;
  }
  int num_ended() const {
    MutexLock lock(mu_);
    return num_ended_;
  }
  // Until that many events came, or nothing is open any more.
  void WaitForEvents(int count) {
    MutexLock lock(mu_);
    const auto until = Deadline();
    while (num_events_ < count && num_ended_ < static_cast<int>(streams_.size()) &&
           changed_.WaitUntil(mu_, until)) {
    }
  }
  // Copies of all streams, in order of NewSink, once all have ended.
  std::vector<Stream> WaitForAll() {
    MutexLock lock(mu_);
    const auto until = Deadline();
    while (num_ended_ < static_cast<int>(streams_.size()) && changed_.WaitUntil(mu_, until)) {
    }
    EXPECT_EQ(num_ended_, static_cast<int>(streams_.size())) << "requests without an end";
    return {streams_.begin(), streams_.end()};
  }

 private:
  static std::chrono::steady_clock::time_point Deadline() {
    return std::chrono::steady_clock::now() + std::chrono::seconds(60);
  }
  void Record(Stream& stream, TokenEvent&& event) {
    MutexLock lock(mu_);
    EXPECT_FALSE(stream.ended) << "an event after the end";
    ++num_events_;
    if (event.kind == TokenEvent::Kind::kEnd) {
      stream.ended = true;
      stream.end = std::move(event);
      ++num_ended_;
    } else {
      stream.tokens.push_back(event.token);
      stream.text += event.text;
      stream.events.push_back(std::move(event));
    }
    changed_.NotifyAll();
  }

  mutable Mutex mu_;
  CondVar changed_;
  std::deque<Stream> streams_ ABSL_GUARDED_BY(mu_);  // deque: sinks keep references
  int num_events_ ABSL_GUARDED_BY(mu_) = 0;
  int num_ended_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace assay
