#include "server/front/connection.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

// Pieces moved for one connection before others have a turn.
constexpr int kTurn = 16;
// For a client to close after the server has.
constexpr absl::Duration kLinger = absl::Seconds(2);

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) close(fd_);
    fd_ = std::exchange(other.fd_, -1);
  }
  return *this;
}
Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

Connection::Connection(Descriptor client, std::string address, const Options& options,
                       absl::Time now)
    : options_(options),
      client_(std::move(client)),
      address_(std::move(address)),
      ssl_(nullptr, SSL_free),
      guard_(options.limits.http2, now),
      request_(options.limits.http2.max_header_bytes),
      deadline_(now + options.limits.handshake_timeout) {
  if (options.tls == nullptr) {
    shaken_ = true;
    return;
  }
  ssl_.reset(SSL_new(options.tls.get()));
  SSL_set_fd(ssl_.get(), client_.get());
  SSL_set_accept_state(ssl_.get());
}

Connection::~Connection() = default;

void Connection::Piece::Keep(std::span<const std::byte> rest) {
  if (rest.empty()) {
    bytes.clear();
    begin = 0;
  } else {
    begin = bytes.size() - rest.size();
  }
}
void Connection::Piece::Add(std::span<const std::byte> more) {
  bytes.insert(bytes.end(), more.begin(), more.end());
}

bool Connection::End(absl::Status status) {
  end_ = std::move(status);
  return false;
}

bool Connection::Handshake() {
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  if (result == 1) {
    shaken_ = true;
    return true;
  }
  const int error = SSL_get_error(ssl_.get(), result);
  if (error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ) return true;
  const char* const reason = ERR_reason_error_string(ERR_get_error());
  return End(absl::UnauthenticatedError(
      absl::StrCat("TLS handshake: ", reason == nullptr ? "the client left" : reason)));
}

std::string Connection::Subject() const {
  const X509* const certificate = ssl_ == nullptr ? nullptr : SSL_get0_peer_certificate(ssl_.get());
  if (certificate == nullptr) return "";
  const std::unique_ptr<BIO, int (*)(BIO*)> text(BIO_new(BIO_s_mem()), BIO_free);
  X509_NAME_print_ex(text.get(), X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253);
  char* bytes = nullptr;
  const long length = BIO_get_mem_data(text.get(), &bytes);
  return length > 0 ? std::string(bytes, static_cast<size_t>(length)) : "";
}

Connection::Moved Connection::ReadClient(std::span<std::byte> into, size_t& count) {
  if (ssl_ == nullptr) {
    const ssize_t got = recv(client_.get(), into.data(), into.size(), 0);
    if (got < 0) return errno == EAGAIN || errno == EINTR ? Moved::kNothing : Moved::kEnded;
    count = static_cast<size_t>(got);
    return got == 0 ? Moved::kEnded : Moved::kSome;
  }
  ERR_clear_error();
  if (SSL_read_ex(ssl_.get(), into.data(), into.size(), &count) == 1) return Moved::kSome;
  const int error = SSL_get_error(ssl_.get(), 0);
  return error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ ? Moved::kNothing
                                                                       : Moved::kEnded;
}

Connection::Moved Connection::WriteClient(std::span<const std::byte> from, size_t& count) {
  if (ssl_ == nullptr) {
    const ssize_t put = send(client_.get(), from.data(), from.size(), MSG_NOSIGNAL);
    if (put < 0) return errno == EAGAIN || errno == EINTR ? Moved::kNothing : Moved::kEnded;
    count = static_cast<size_t>(put);
    return Moved::kSome;
  }
  ERR_clear_error();
  if (SSL_write_ex(ssl_.get(), from.data(), from.size(), &count) == 1) return Moved::kSome;
  const int error = SSL_get_error(ssl_.get(), 0);
  return error == SSL_ERROR_WANT_WRITE || error == SSL_ERROR_WANT_READ ? Moved::kNothing
                                                                       : Moved::kEnded;
}

std::span<const std::byte> Connection::ToServer(std::span<const std::byte> from) {
  while (!from.empty()) {
    const ssize_t put = send(server_.get(), from.data(), from.size(), MSG_NOSIGNAL);
    if (put < 0 && (errno == EAGAIN || errno == EINTR)) return from;
    if (put < 0) {  // it closed; what it still says is read by Send
      client_ended_ = true;
      return {};
    }
    from = from.subspan(static_cast<size_t>(put));
  }
  return {};
}

void Connection::FlushToServer() {
  to_server_.Keep(ToServer(to_server_.rest()));
  if (!to_server_.empty() || !client_ended_ || told_server_) return;
  told_server_ = true;
  shutdown(server_.get(), SHUT_WR);
}

// And when it must have come to an end.
absl::Status Connection::Watch(std::span<const std::byte> bytes, absl::Time now) {
  const FrontLimits& limits = options_.limits;
  if (!options_.speaks_http2) {
    const bool begun_before = request_.begun();
    RETURN_IF_ERROR(request_.Take(bytes));
    if (!begun_before && request_.begun()) deadline_ = now + limits.http_answer_time;
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(guard_.Take(bytes, now));
  if (guard_.begun() && !guard_.inside_headers()) {
    deadline_ = absl::InfiniteFuture();
  } else if (deadline_ == absl::InfiniteFuture()) {
    deadline_ = now + limits.handshake_timeout;
  }
  return absl::OkStatus();
}

bool Connection::Receive(absl::Time now) {
  for (int turn = 0; turn < kTurn; ++turn) {
    if (server_.valid()) {
      FlushToServer();
      if (!to_server_.empty() || client_ended_) return true;
    }
    size_t count = 0;
    const Moved moved = ReadClient(options_.scratch, count);
    if (moved == Moved::kNothing) return true;
    if (moved == Moved::kEnded) {
      client_ended_ = true;
      if (!server_.valid()) return End(absl::OkStatus());
      continue;  // tells the server
    }
    const std::span<const std::byte> piece = options_.scratch.first(count);
    if (absl::Status taken = Watch(piece, now); !taken.ok()) return End(std::move(taken));
    if (!server_.valid() && begun()) {
      server_ = options_.connect(Subject());
      if (!server_.valid()) return End(absl::UnavailableError("the server takes no connections"));
      FlushToServer();
    }
    // Before the server's end is there, what the guard lets pass is kept.
    const bool straight = server_.valid() && to_server_.empty();
    to_server_.Add(straight ? ToServer(piece) : piece);
  }
  again_ = true;
  return true;
}

bool Connection::ToClient(std::span<const std::byte>& from) {
  while (!from.empty()) {
    size_t count = 0;
    const Moved moved = WriteClient(from, count);
    if (moved == Moved::kEnded) return End(absl::OkStatus());
    if (moved == Moved::kNothing) return true;
    from = from.subspan(count);
  }
  return true;
}

bool Connection::Send() {
  for (int turn = 0; turn < kTurn; ++turn) {
    std::span<const std::byte> rest = to_client_.rest();
    if (!ToClient(rest)) return false;
    to_client_.Keep(rest);
    if (!to_client_.empty() || server_ended_) return true;
    const ssize_t got = recv(server_.get(), options_.scratch.data(), kPieceBytes, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (got <= 0) {
      server_ended_ = true;
      return true;
    }
    guard_.ServerSpoke();
    rest = options_.scratch.first(static_cast<size_t>(got));
    if (!ToClient(rest)) return false;
    to_client_.Add(rest);
  }
  again_ = true;
  return true;
}

bool Connection::Pump(absl::Time now) {
  again_ = false;
  if (!shaken_ && !Handshake()) return false;
  if (!shaken_) return true;
  if (!Receive(now)) return false;
  if (!server_.valid()) return true;
  if (!Send()) return false;
  if (server_ended_ && to_client_.empty()) {
    if (client_ended_) return End(absl::OkStatus());
    if (!told_client_) {
      told_client_ = true;
      if (ssl_ != nullptr) SSL_shutdown(ssl_.get());
      shutdown(client_.get(), SHUT_WR);
      deadline_ = now + kLinger;
    }
  }
  return true;
}

bool Connection::InTime(absl::Time now) {
  if (now < deadline_) return true;
  if (told_client_) return End(absl::OkStatus());
  const bool http2 = options_.speaks_http2;
  const char* const reason =
      !shaken_  ? "the TLS handshake took too long"
      : begun() ? http2 ? "a header block took too long" : "the answer was not read in time"
      : http2   ? "no HTTP/2 preface in time"
                : "no whole HTTP request in time";
  return End(absl::DeadlineExceededError(reason));
}

}  // namespace assay
