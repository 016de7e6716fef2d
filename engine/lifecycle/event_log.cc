#include "engine/lifecycle/event_log.h"

#include "absl/strings/str_cat.h"

namespace assay {

void EventLog::Add(Event event) {
  event.at = clock_.Now();
  Log(event.level, "event",
      {{"model", event.model},
       {"version", absl::StrCat(event.version)},
       {"kind", event.kind},
       {"reason", event.reason}});
  MutexLock lock(mu_);
  event.id = ++last_;
  events_.push_back(std::move(event));
  if (events_.size() > kMost) events_.pop_front();
}

std::vector<Event> EventLog::Since(int64_t id, std::string_view model) const {
  std::vector<Event> found;
  MutexLock lock(mu_);
  for (const Event& event : events_) {
    if (event.id > id && (model.empty() || event.model == model)) found.push_back(event);
  }
  return found;
}

}  // namespace assay
