#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <atomic>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace assay {
namespace {

std::atomic<LogFormat> g_format{LogFormat::kText};  // set once by main, read by every line

constexpr std::string_view kNames[] = {"DEBUG", "INFO", "WARNING", "ERROR"};

spdlog::logger& Sink() {
  static spdlog::logger* const logger = [] {
    auto* created = new spdlog::logger("assay", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    // On a terminal a line takes the place of a progress line that is being redrawn.
    created->set_pattern(isatty(STDERR_FILENO) != 0 ? "\r\033[K%v" : "%v");
    created->flush_on(spdlog::level::info);
    return created;
  }();
  return *logger;
}

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

bool NeedsQuotes(std::string_view value) {
  return value.empty() || value.find_first_of(" \t\n\"=") != std::string_view::npos;
}

}  // namespace

void ConfigureLog(LogLevel minimum, LogFormat format) {
  Sink().set_level(ToSpdlog(minimum));
  g_format.store(format);
}

void Log(LogLevel level, std::string_view message,
         std::initializer_list<std::pair<std::string_view, std::string>> fields) {
  if (!Sink().should_log(ToSpdlog(level))) return;
  const std::string now =
      absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  const std::string_view name = kNames[static_cast<int>(level)];
  std::string line;
  if (g_format.load() == LogFormat::kJson) {
    nlohmann::ordered_json json{{"time", now}, {"level", name}, {"message", message}};
    for (const auto& [key, value] : fields) json[std::string(key)] = value;
    line = json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  } else {
    line = absl::StrCat(now, " ", std::string(name), " ", std::string(message));
    for (const auto& [key, value] : fields) {
      absl::StrAppend(&line, " ", std::string(key), "=");
      absl::StrAppend(&line, NeedsQuotes(value)
                                 ? absl::StrCat("\"", absl::Utf8SafeCEscape(value), "\"")
                                 : value);
    }
  }
  Sink().log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace assay
