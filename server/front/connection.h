// One client of a Front, on its way to the server: bytes go through the guard to the server's end
// and back, decrypted and encrypted where the port speaks TLS. Holds at most two pieces of
// kPieceBytes; whoever does not read is not written to, and the other side waits.
//
// Thread rule: one thread per object, that of its loop.
#pragma once
#include <sys/socket.h>

#include <array>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "server/front/http1_guard.h"
#include "server/front/http2_guard.h"
#include "server/front/limits.h"

struct ssl_ctx_st;
struct ssl_st;

namespace assay {

// A file descriptor, closed at the end. Move-only.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }

 private:
  int fd_ = -1;
};

class Connection {
 public:
  static constexpr size_t kPieceBytes = size_t{64} << 10;

  struct Options {
    FrontLimits limits;
    bool speaks_http2 = true;         // false: one request of HTTP/1
    std::shared_ptr<ssl_ctx_st> tls;  // null: plain
    // [kPieceBytes], of the loop: what is read goes on from here at once, nearly always.
    std::span<std::byte> scratch;
    // Makes the server's end; called once, when a client has shown that it speaks HTTP/2, or its
    // request's head is whole. Invalid: the server takes no more.
    std::function<Descriptor(std::string subject)> connect;  // of the client's certificate
  };
  Connection(Descriptor client, std::string address, const Options& options, absl::Time now);
  ~Connection();

  // Moves all that can be moved now. False: it is over, `end` says why. True: call again once one
  // of the descriptors has become readable or writable, or at once when `again`.
  bool Pump(absl::Time now);
  // False: it has taken too long over something.
  bool InTime(absl::Time now);

  bool again() const { return again_; }

  int client_fd() const { return client_.get(); }
  int server_fd() const { return server_.get(); }  // -1: not yet
  const std::string& address() const { return address_; }
  const absl::Status& end() const { return end_; }  // OK: it ended as connections do

 private:
  enum class Moved { kSome, kNothing, kEnded };
  // What was read and not yet written.
  struct Piece {
    std::vector<std::byte> bytes;
    size_t begin = 0;
    bool empty() const { return begin == bytes.size(); }
    std::span<const std::byte> rest() const { return std::span(bytes).subspan(begin); }
    void Keep(std::span<const std::byte> rest);  // the end of what is there
    void Add(std::span<const std::byte> more);
  };
  bool Handshake();
  std::string Subject() const;  // of the client's certificate; empty: it has shown none
  bool begun() const { return options_.speaks_http2 ? guard_.begun() : request_.begun(); }
  absl::Status Watch(std::span<const std::byte> bytes, absl::Time now);
  bool Receive(absl::Time now);  // client to server
  bool Send();                   // server to client
  Moved ReadClient(std::span<std::byte> into, size_t& count);
  Moved WriteClient(std::span<const std::byte> from, size_t& count);
  // Returns what the server's end does not take now.
  std::span<const std::byte> ToServer(std::span<const std::byte> from);
  void FlushToServer();
  // Leaves in `from` what the client does not take now. False: it is gone.
  bool ToClient(std::span<const std::byte>& from);
  bool End(absl::Status status);

  const Options& options_;
  Descriptor client_, server_;
  const std::string address_;
  std::unique_ptr<ssl_st, void (*)(ssl_st*)> ssl_;
  Http2Guard guard_;
  Http1Guard request_;  // the one or the other is used
  Piece to_server_, to_client_;
  bool shaken_ = false;  // hands, where there is TLS
  bool client_ended_ = false, server_ended_ = false, told_server_ = false, told_client_ = false;
  bool again_ = false;
  absl::Time deadline_;
  absl::Status end_;
};

}  // namespace assay
