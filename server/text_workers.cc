#include "server/text_workers.h"

#include <utility>

namespace assay {

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

void TextWorkers::Run(size_t text_bytes, std::function<void()> work) {
  if (text_bytes <= kShortBytes) return work();
  MutexLock lock(mu_);
  waiting_.push_back(std::move(work));
  changed_.NotifyOne();
}

void TextWorkers::Loop() {
  for (;;) {
    std::function<void()> work;
    {
      MutexLock lock(mu_);
      while (waiting_.empty() && !stop_) changed_.Wait(mu_);
      if (waiting_.empty()) return;
      work = std::move(waiting_.front());
      waiting_.pop_front();
    }
    work();
  }
}

}  // namespace assay
