// One-line structured log: `Log(LogLevel::kInfo, "version state", {{"model", name}, {"state",
// "SERVING"}})` prints `2026-11-22T08:00:00.123Z INFO version state model=smollm2 state=SERVING`,
// or the same as JSON. Thread-safe; to stderr. Never prompts, never weights. INFO for state
// changes, WARNING for what an operator should read, ERROR for what wakes one.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace assay {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

void ConfigureLog(LogLevel minimum, LogFormat format);
void Log(LogLevel level, std::string_view message,
         std::initializer_list<std::pair<std::string_view, std::string>> fields = {});

// Text for people (a banner) on stderr, whatever the minimum level: as it is, or, where the log is
// JSON, a line of the log at INFO for each of its lines that is not blank, so that every line of
// stderr is JSON.
void Announce(std::string_view text);

}  // namespace assay
