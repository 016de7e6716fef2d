#include "server/access.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/sha256.h"
#include "server/config.h"

namespace assay {
namespace {

constexpr Role kRoles[] = {Role::kInfer, Role::kObserve, Role::kAdmin};
constexpr size_t kHashDigits = 64;
constexpr size_t kMostTokenBytes = 4096;  // more is not hashed
constexpr char kBearer[] = "bearer ";

unsigned BitOf(Role role) { return 1u << static_cast<unsigned>(role); }

// Every digit is looked at, wherever the first difference is.
bool SameHash(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  volatile unsigned char differs = 0;
  for (size_t i = 0; i < a.size(); ++i)
    differs = static_cast<unsigned char>(differs | (a[i] ^ b[i]));
  return differs == 0;
}

absl::StatusOr<unsigned> ParseRoles(const std::string& text) {
  unsigned roles = 0;
  for (const std::string& word : std::vector<std::string>(absl::StrSplit(text, ','))) {
    const auto* const role =
        std::find_if(std::begin(kRoles), std::end(kRoles), [&](Role r) { return word == Name(r); });
    if (role == std::end(kRoles))
      return absl::InvalidArgumentError("expected roles of infer, observe, admin, with commas");
    roles |= BitOf(*role);
  }
  if ((roles & BitOf(Role::kAdmin)) != 0) roles |= BitOf(Role::kInfer) | BitOf(Role::kObserve);
  return roles;
}

absl::StatusOr<TokenTable::Entry> ParseEntry(const std::string& line) {
  const std::vector<std::string> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (words.size() != 3)
    return absl::InvalidArgumentError("expected a name, roles and SHA-256 of the token");
  TokenTable::Entry entry{.name = words[0]};
  if (entry.name.size() > 64 || !std::all_of(entry.name.begin(), entry.name.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' ||
               c == '.';
      }))
    return absl::InvalidArgumentError("expected a name of letters, digits, '.', '_', '-'");
  ASSIGN_OR_RETURN(entry.roles, ParseRoles(words[1]));
  entry.hash = absl::AsciiStrToLower(words[2]);
  if (entry.hash.size() != kHashDigits ||
      entry.hash.find_first_not_of("0123456789abcdef") != std::string::npos)
    return absl::InvalidArgumentError("expected SHA-256 of the token, in 64 hexadecimal digits");
  if (entry.hash == Sha256Hex("") || entry.hash == Sha256Hex("\n"))
    return absl::InvalidArgumentError("this is SHA-256 of nothing, not of a token");
  return entry;
}

// What follows "Bearer"; empty: it is nothing of the kind.
std::string TokenIn(const std::string& authorization) {
  constexpr size_t kPrefix = sizeof(kBearer) - 1;
  if (!absl::StartsWithIgnoreCase(authorization, kBearer)) return "";
  return std::string(absl::StripAsciiWhitespace(authorization.substr(kPrefix)));
}

// Empty: there is none, or there are several, which are not guessed at.
std::string AuthorizationOf(const grpc::ServerContextBase& rpc) {
  const auto [first, last] = rpc.client_metadata().equal_range("authorization");
  if (first == last || std::next(first) != last) return "";
  return {first->second.data(), first->second.size()};
}

}  // namespace

std::string_view Name(Role role) {
  switch (role) {
    case Role::kInfer:
      return "infer";
    case Role::kObserve:
      return "observe";
    case Role::kAdmin:
      return "admin";
  }
  return "unknown";
}

absl::StatusOr<TokenTable> TokenTable::Parse(std::string_view text, const std::string& origin) {
  TokenTable table;
  int number = 0;
  const std::vector<std::string> lines = absl::StrSplit(std::string(text), '\n');
  for (const std::string& whole : lines) {
    ++number;
    std::string line = whole.substr(0, whole.find('#'));
    absl::StripAsciiWhitespace(&line);
    if (line.empty()) continue;
    absl::StatusOr<Entry> entry = ParseEntry(line);
    absl::Status status = entry.status();
    for (const Entry& other : table.entries_) {
      if (!status.ok()) break;
      if (other.name == entry->name) status = absl::InvalidArgumentError("a name twice");
      if (other.hash == entry->hash) status = absl::InvalidArgumentError("a token twice");
    }
    if (!status.ok())
      return absl::InvalidArgumentError(
          absl::StrCat("auth.tokens: ", origin, ":", number, ": ", std::string(status.message())));
    table.entries_.push_back(*std::move(entry));
  }
  return table;
}

absl::StatusOr<TokenTable> TokenTable::Read(const std::string& path) {
  if (path.empty()) return TokenTable();
  const absl::StatusOr<std::string> text = ReadConfigFile(path);
  if (!text.ok())
    return absl::NotFoundError(
        absl::StrCat("cannot read auth.tokens: ", std::string(text.status().message())));
  return Parse(*text, path);
}

const TokenTable::Entry* TokenTable::Find(std::string_view token) const {
  if (token.empty() || token.size() > kMostTokenBytes) return nullptr;
  const std::string hash = Sha256Hex(token);
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) found = SameHash(hash, entry.hash) ? &entry : found;
  return found;
}

bool TokenTable::operator==(const TokenTable& other) const {
  return std::equal(entries_.begin(), entries_.end(), other.entries_.begin(), other.entries_.end(),
                    [](const Entry& a, const Entry& b) {
                      return a.name == b.name && a.roles == b.roles && a.hash == b.hash;
                    });
}

AccessControl::AccessControl(AccessOptions options, TokenTable tokens, Metrics& metrics)
    : options_(std::move(options)),
      metrics_(metrics),
      tokens_(std::make_shared<const TokenTable>(std::move(tokens))) {}

std::shared_ptr<const TokenTable> AccessControl::tokens() const {
  const MutexLock lock(mu_);
  return tokens_;
}

size_t AccessControl::num_tokens() const { return tokens()->entries().size(); }

bool AccessControl::CameByAdminPort(const std::string& peer) const {
  int fd = 0;
  return absl::StartsWith(peer, "fd:") && absl::SimpleAtoi(peer.substr(3), &fd) &&
         fd >= options_.admin_from_fd;
}

absl::StatusOr<std::string> AccessControl::CheckToken(const std::string& authorization,
                                                      Role role) const {
  const std::string token = TokenIn(authorization);
  if (token.empty()) {
    metrics_.AuthRefused(AuthRefusal::kNoToken);
    return absl::UnauthenticatedError(
        "a token is needed: send the header 'authorization: Bearer TOKEN'");
  }
  const std::shared_ptr<const TokenTable> table = tokens();
  const TokenTable::Entry* const entry = table->Find(token);
  if (entry == nullptr) {
    metrics_.AuthRefused(AuthRefusal::kUnknownToken);
    return absl::UnauthenticatedError("the token is not known here");
  }
  if (!entry->Has(role)) {
    metrics_.AuthRefused(AuthRefusal::kRole);
    return absl::PermissionDeniedError(absl::StrCat(
        "this needs the role '", std::string(Name(role)), "', which the token does not have"));
  }
  return entry->name;
}

absl::Status AccessControl::Check(const std::string& authorization, Role role) const {
  return asks_tokens() ? CheckToken(authorization, role).status() : absl::OkStatus();
}

absl::StatusOr<std::string> AccessControl::Check(const grpc::CallbackServerContext& rpc,
                                                 Role role) const {
  std::string client;
  if (asks_tokens()) {
    ASSIGN_OR_RETURN(client, CheckToken(AuthorizationOf(rpc), role));
  }
  if (role != Role::kAdmin || options_.admin_on_data || CameByAdminPort(rpc.peer())) return client;
  metrics_.AuthRefused(AuthRefusal::kPort);
  return absl::PermissionDeniedError(
      "this port serves no administration: use that of admin_port, or set 'admin: true' where the "
      "server is configured");
}

std::string AccessControl::ClientOf(const grpc::ServerContextBase& rpc) const {
  if (!asks_tokens()) return "";
  const std::shared_ptr<const TokenTable> table = tokens();
  const TokenTable::Entry* const entry = table->Find(TokenIn(AuthorizationOf(rpc)));
  return entry == nullptr ? "" : entry->name;
}

absl::StatusOr<bool> AccessControl::Reload() {
  ASSIGN_OR_RETURN(TokenTable table, TokenTable::Read(options_.tokens_path));
  const MutexLock lock(mu_);
  if (table == *tokens_) return false;
  tokens_ = std::make_shared<const TokenTable>(std::move(table));
  return true;
}

}  // namespace assay
