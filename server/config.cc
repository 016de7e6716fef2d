#include "server/config.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace assay {
namespace {

// Edits that turn `a` into `b` (Levenshtein).
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row.back();
}

const ConfigOption* FindOption(std::string_view key) {
  for (const ConfigOption& option : AllConfigOptions()) {
    if (option.key == key) return &option;
  }
  return nullptr;
}

absl::Status UnknownKey(const std::string& origin, const std::string& key) {
  std::vector<std::string> known;
  for (const ConfigOption& option : AllConfigOptions()) {
    if (absl::StartsWith(option.key, key + ".")) {
      return absl::InvalidArgumentError(absl::StrCat(
          origin, ": '", key, "' is a section: its keys go below it, indented, such as ",
          option.key.substr(key.size() + 1)));
    }
    known.push_back(option.key);
  }
  const std::string hint = DidYouMean(key, known);
  return absl::InvalidArgumentError(
      absl::StrCat(origin, ": unknown key '", key, "'",
                   hint.empty() ? "; see deploy/example.yaml for the keys that exist" : hint));
}

class Loader {
 public:
  Loader() {
    for (const ConfigOption& option : AllConfigOptions()) out_.origin[option.key] = "default";
  }

  absl::Status Set(const ConfigOption& option, std::string_view text, const std::string& origin) {
    const absl::Status status = option.set(out_.config, text);
    if (!status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(origin, ": ", option.key, ": ", std::string(status.message())));
    }
    out_.origin[option.key] = origin;
    return absl::OkStatus();
  }

  absl::Status ReadFile(const std::string& path) {
    const absl::StatusOr<std::string> text = ReadConfigFile(path);
    if (!text.ok()) {
      return absl::NotFoundError(absl::StrCat("cannot read the configuration file: ",
                                              std::string(text.status().message())));
    }
    ASSIGN_OR_RETURN(const std::vector<YamlScalar> scalars, FlattenYaml(*text, path));
    for (const YamlScalar& scalar : scalars) {
      const std::string origin = absl::StrCat(path, ":", scalar.line);
      const ConfigOption* option = FindOption(scalar.key);
      if (option == nullptr) return UnknownKey(origin, scalar.key);
      if (absl::StartsWith(out_.origin[option->key], path + ":")) {
        return absl::InvalidArgumentError(absl::StrCat(
            origin, ": ", option->key, " is set twice, first at ", out_.origin[option->key]));
      }
      RETURN_IF_ERROR(Set(*option, scalar.value, origin));
    }
    return absl::OkStatus();
  }

  EffectiveConfig Take() { return std::move(out_); }

 private:
  EffectiveConfig out_;
};

// Where the set-up scripts keep everything else that lies outside the clone.
std::string DefaultCacheDir(const ConfigSources& sources, std::string& origin) {
  const std::pair<const char*, const char*> places[] = {{"ASSAY_CACHE", "/artifacts"},
                                                        {"XDG_CACHE_HOME", "/assay/artifacts"},
                                                        {"HOME", "/.cache/assay/artifacts"}};
  for (const auto& [variable, rest] : places) {
    const char* value = sources.environment ? sources.environment(variable) : nullptr;
    if (value == nullptr || *value == '\0') continue;
    origin = absl::StrCat("default (", variable, ")");
    return absl::StrCat(value, rest);
  }
  return "none";
}

// Variables with our prefix that neither an option nor a script of ours reads.
std::vector<std::string> EnvironmentWarnings(const std::vector<std::string>& names) {
  std::vector<std::string> known{"ASSAY_ADMIN_SERVER", "ASSAY_TOKEN_FILE", "ASSAY_BUILD_DIR",
                                 "ASSAY_CACHE",        "ASSAY_CHECK_BASE", "ASSAY_CI_BUDGET",
                                 "ASSAY_CONFIG",       "ASSAY_DEPS",       "ASSAY_MODELS",
                                 "ASSAY_SERVER",       "ASSAY_VENV"};
  for (const ConfigOption& option : AllConfigOptions()) known.push_back(option.environment());
  std::vector<std::string> out;
  for (const std::string& name : names) {
    if (!absl::StartsWith(name, "ASSAY_")) continue;
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    out.push_back(absl::StrCat("the environment variable ", name, " is no option and has no effect",
                               DidYouMean(name, known)));
  }
  return out;
}

// Two ports that would be one.
absl::Status CheckPorts(const EffectiveConfig& effective) {
  const ServerConfig& config = effective.config;
  const std::pair<const char*, int> ports[] = {{"grpc_port", config.grpc_port},
                                               {"http_port", config.http_port},
                                               {"admin_port", config.admin_port},
                                               {"health_port", config.health_port}};
  for (const auto* later = std::begin(ports); later != std::end(ports); ++later) {
    for (const auto* port = std::begin(ports); port != later; ++port) {
      if (port->second != later->second || port->second <= 0) continue;
      return absl::InvalidArgumentError(absl::StrCat(
          effective.origin.at(later->first), ": ", later->first, ": ", later->second, " is ",
          port->first, ", too (", effective.origin.at(port->first), "): the ports must differ"));
    }
  }
  return absl::OkStatus();
}

// Bounds that cannot be off.
absl::Status CheckLimits(const EffectiveConfig& effective) {
  constexpr size_t kLeastHeader = 1024;  // below it a gRPC library's own headers are refused
  const FrontLimits& limits = effective.config.limits;
  if (limits.http2.max_header_bytes < kLeastHeader)
    return absl::InvalidArgumentError(
        absl::StrCat(effective.origin.at("limits.max_header_size"), ": limits.max_header_size: '",
                     limits.http2.max_header_bytes,
                     "' is too small: expected 1KiB or more; this bound cannot be off"));
  if (limits.handshake_timeout <= absl::ZeroDuration())
    return absl::InvalidArgumentError(absl::StrCat(
        effective.origin.at("limits.handshake_timeout"), ": limits.handshake_timeout: '",
        absl::FormatDuration(limits.handshake_timeout),
        "' would cut every connection: expected a time above 0; this bound cannot be off"));
  return absl::OkStatus();
}

bool NeedsQuotes(std::string_view value) {
  for (const char* other : {"", "-", "?", "~", "null", "Null", "NULL"})  // no text when plain
    if (value == other) return true;
  return value.find_first_of(":#'\"{}[],&*!|>%@` ") != std::string_view::npos;
}

bool IsControl(char c) { return absl::ascii_iscntrl(static_cast<unsigned char>(c)); }

std::string YamlText(std::string_view value) {
  if (std::any_of(value.begin(), value.end(), IsControl)) {
    std::string escaped = "\"";
    for (const char c : value) {
      if (IsControl(c)) {
        absl::StrAppend(&escaped, "\\x", absl::Hex(c, absl::kZeroPad2));
      } else {
        absl::StrAppend(&escaped, c == '"' || c == '\\' ? "\\" : "", std::string(1, c));
      }
    }
    return escaped + "\"";
  }
  if (!NeedsQuotes(value)) return std::string(value);
  std::string quoted = "'";
  for (const char c : value) quoted += c == '\'' ? std::string("''") : std::string(1, c);
  return quoted + "'";
}

}  // namespace

bool IsLoopback(const std::string& address) {
  return address == "localhost" || address == "::1" || address == "[::1]" ||
         absl::StartsWith(address, "127.");
}

bool ServerConfig::is_loopback() const { return IsLoopback(listen); }

bool ServerConfig::admin_on_data_port() const {
  return admin == AdminAccess::kOn ||
         (admin == AdminAccess::kAuto && is_loopback() && auth.tokens.empty());
}

bool ServerConfig::paths_are_confined() const {
  return !auth.tokens.empty() || !model_roots.empty() || !is_loopback() ||
         (admin_port >= 0 && !IsLoopback(admin_listen));
}

absl::StatusOr<std::string> ReadConfigFile(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    return absl::NotFoundError(absl::StrCat(path, ": is a folder, expected a file"));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  std::stringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

std::string DidYouMean(std::string_view given, std::span<const std::string> known) {
  const std::string* nearest = nullptr;
  size_t best = std::max<size_t>(2, given.size() / 3) + 1;
  for (const std::string& word : known) {
    const size_t distance = EditDistance(given, word);
    if (distance < best) {
      best = distance;
      nearest = &word;
    }
  }
  return nearest == nullptr ? "" : absl::StrCat("; did you mean '", *nearest, "'?");
}

absl::StatusOr<EffectiveConfig> LoadConfig(const ConfigSources& sources) {
  Loader loader;
  if (!sources.yaml_path.empty()) RETURN_IF_ERROR(loader.ReadFile(sources.yaml_path));
  for (const ConfigOption& option : AllConfigOptions()) {
    const std::string variable = option.environment();
    const char* text = sources.environment ? sources.environment(variable.c_str()) : nullptr;
    if (text != nullptr) RETURN_IF_ERROR(loader.Set(option, text, variable));
  }
  for (const auto& [key, text] : sources.flags) {
    const ConfigOption* option = FindOption(key);
    if (option == nullptr) return UnknownKey("flags", key);
    RETURN_IF_ERROR(loader.Set(*option, text, option->flag()));
  }
  EffectiveConfig out = loader.Take();
  out.warnings = EnvironmentWarnings(sources.environment_names);
  if (out.config.cache_dir.empty()) {
    out.config.cache_dir = DefaultCacheDir(sources, out.origin["cache_dir"]);
  }
  RETURN_IF_ERROR(CheckPorts(out));
  RETURN_IF_ERROR(CheckLimits(out));
  if (out.config.grpc.max_message_bytes == 0 || out.config.grpc.max_message_bytes > uint64_t{2047}
                                                                                        << 20) {
    return absl::InvalidArgumentError(
        absl::StrCat(out.origin["grpc.max_message_size"],
                     ": grpc.max_message_size: expected 1 byte to 2047MiB"));
  }
  return out;
}

std::string Print(const EffectiveConfig& effective) {
  std::string out, section;
  for (const ConfigOption& option : AllConfigOptions()) {
    const size_t dot = option.key.find('.');
    const std::string own_section = dot == std::string::npos ? "" : option.key.substr(0, dot);
    if (own_section != section) absl::StrAppend(&out, own_section, ":\n");
    section = own_section;
    const std::string name = dot == std::string::npos ? option.key : option.key.substr(dot + 1);
    std::string line = absl::StrCat(section.empty() ? "" : "  ", name, ": ",
                                    YamlText(option.show(effective.config)));
    line.resize(std::max<size_t>(line.size() + 1, 46), ' ');
    absl::StrAppend(&out, line, "# ", effective.origin.at(option.key), "\n");
  }
  return out;
}

}  // namespace assay
