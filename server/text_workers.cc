#include "server/text_workers.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/retry_after.h"

namespace assay {
namespace {

constexpr absl::Duration kRetryAfter = absl::Seconds(2);  // 8 MiB are done by then

}  // namespace

TextWorkers::TextWorkers(int num_threads) {
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Loop(); });
}

TextWorkers::~TextWorkers() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    changed_.NotifyAll();
  }
  for (std::thread& thread : threads_) thread.join();
}

absl::Status TextWorkers::Run(size_t text_bytes, std::function<void()> work) {
  if (text_bytes <= kShortBytes) {
    work();
    return absl::OkStatus();
  }
  MutexLock lock(mu_);
  if (!waiting_.empty() && waiting_bytes_ + text_bytes > kMaxWaitingBytes) {
    absl::Status refused = absl::ResourceExhaustedError(absl::StrCat(
        "too much text waits to be tokenized: bytes=", waiting_bytes_, " max=", kMaxWaitingBytes));
    SetRetryAfter(kRetryAfter, refused);
    return refused;
  }
  waiting_.push_back({text_bytes, std::move(work)});
  waiting_bytes_ += text_bytes;
  changed_.NotifyOne();
  return absl::OkStatus();
}

void TextWorkers::Loop() {
  for (;;) {
    std::function<void()> work;
    {
      MutexLock lock(mu_);
      while (waiting_.empty() && !stop_) changed_.Wait(mu_);
      if (waiting_.empty()) return;
      work = std::move(waiting_.front().work);
      waiting_bytes_ -= waiting_.front().bytes;
      waiting_.pop_front();
    }
    work();
  }
}

}  // namespace assay
