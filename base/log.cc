#include "base/log.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
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
  return value.empty() || std::any_of(value.begin(), value.end(), [](char c) {
           return c == ' ' || c == '"' || c == '=' ||
                  absl::ascii_iscntrl(static_cast<unsigned char>(c));
         });
}

using Fields = std::initializer_list<std::pair<std::string_view, std::string>>;

std::string Now() {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
}

std::string JsonLine(LogLevel level, std::string_view message, Fields fields) {
  nlohmann::ordered_json json{
      {"time", Now()}, {"level", kNames[static_cast<int>(level)]}, {"message", message}};
  for (const auto& [key, value] : fields) json[std::string(key)] = value;
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string TextLine(LogLevel level, std::string_view message, Fields fields) {
  std::string line = absl::StrCat(Now(), " ", std::string(kNames[static_cast<int>(level)]), " ",
                                  std::string(message));
  for (const auto& [key, value] : fields) {
    absl::StrAppend(
        &line, " ", std::string(key), "=",
        NeedsQuotes(value) ? absl::StrCat("\"", absl::Utf8SafeCEscape(value), "\"") : value);
  }
  return line;
}

void Write(LogLevel level, const std::string& line) {
  Sink().log(ToSpdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace

void ConfigureLog(LogLevel minimum, LogFormat format) {
  Sink().set_level(ToSpdlog(minimum));
  g_format.store(format);
}

void Log(LogLevel level, std::string_view message, Fields fields) {
  if (!Sink().should_log(ToSpdlog(level))) return;
  Write(level, g_format.load() == LogFormat::kJson ? JsonLine(level, message, fields)
                                                   : TextLine(level, message, fields));
}

void Announce(std::string_view text) {
  if (g_format.load() == LogFormat::kText) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    return;
  }
  for (absl::string_view line : absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (!line.empty()) Write(LogLevel::kInfo, JsonLine(LogLevel::kInfo, std::string(line), {}));
  }
}

}  // namespace assay
