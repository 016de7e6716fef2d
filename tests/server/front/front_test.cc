// A Front with an echo behind it, and clients of every kind in front.
#include "server/front/front.h"

#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <thread>

#include "absl/strings/str_cat.h"
#include "server/front/connection.h"
#include "tests/server/front/certificates.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

const std::string kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// 9 bytes of a DATA frame of n bytes on stream 1.
std::string DataHeader(size_t n) {
  return {static_cast<char>(n >> 16),
          static_cast<char>(n >> 8),
          static_cast<char>(n),
          0,
          0,
          0,
          0,
          0,
          1};
}

class Client {
 public:
  explicit Client(int port, int receive_buffer = 0)
      : fd_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    if (receive_buffer > 0)
      setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  bool connected() const { return connected_; }
  int fd() const { return fd_.get(); }
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t put = send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (put <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(put));
    }
    return true;
  }
  // Up to `n` bytes; fewer: the other side closed.
  std::string Receive(size_t n) {
    std::string all;
    std::string piece(65536, '\0');
    while (all.size() < n) {
      const ssize_t got = recv(fd_.get(), piece.data(), std::min(n - all.size(), piece.size()), 0);
      if (got <= 0) break;
      all.append(piece, 0, static_cast<size_t>(got));
    }
    return all;
  }
  bool IsCut() { return Receive(1).empty(); }
  void Close() { fd_ = Descriptor(); }

 private:
  Descriptor fd_;
  bool connected_ = false;
};

// A client of TLS; blocking.
class TlsClient {
 public:
  TlsClient(int port, const std::string& authority, const TempDir& folder,
            const TestCertificate* own = nullptr)
      : client_(port),
        context_(SSL_CTX_new(TLS_client_method()), SSL_CTX_free),
        ssl_(nullptr, SSL_free) {
    SSL_CTX_load_verify_locations(context_.get(), folder.Write("client_ca.pem", authority).c_str(),
                                  nullptr);
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER, nullptr);
    if (own != nullptr) {
      SSL_CTX_use_certificate_chain_file(context_.get(),
                                         folder.Write("client.pem", own->certificate).c_str());
      SSL_CTX_use_PrivateKey_file(context_.get(), folder.Write("client.key", own->key).c_str(),
                                  SSL_FILETYPE_PEM);
    }
    ssl_.reset(SSL_new(context_.get()));
    SSL_set_fd(ssl_.get(), client_.fd());
  }
  bool Offer(const std::string& protocol) {
    const std::string wire = static_cast<char>(protocol.size()) + protocol;
    return SSL_set_alpn_protos(ssl_.get(), reinterpret_cast<const unsigned char*>(wire.data()),
                               static_cast<unsigned>(wire.size())) == 0;
  }
  void AtMost(int version) { SSL_set_max_proto_version(ssl_.get(), version); }
  bool Connect() { return SSL_connect(ssl_.get()) == 1; }
  // The bytes that come back.
  std::string Echo(const std::string& bytes) {
    size_t count = 0;
    if (SSL_write_ex(ssl_.get(), bytes.data(), bytes.size(), &count) != 1) return "";
    std::string all, piece(65536, '\0');
    while (all.size() < bytes.size()) {
      if (SSL_read_ex(ssl_.get(), piece.data(), piece.size(), &count) != 1) break;
      all.append(piece, 0, count);
    }
    return all;
  }
  std::string ServerName() {
    const std::unique_ptr<X509, void (*)(X509*)> peer(SSL_get1_peer_certificate(ssl_.get()),
                                                      X509_free);
    std::string name(256, '\0');
    const int length = X509_NAME_get_text_by_NID(X509_get_subject_name(peer.get()), NID_commonName,
                                                 name.data(), static_cast<int>(name.size()));
    return name.substr(0, static_cast<size_t>(std::max(length, 0)));
  }

 private:
  Client client_;
  std::unique_ptr<SSL_CTX, void (*)(SSL_CTX*)> context_;
  std::unique_ptr<SSL, void (*)(SSL*)> ssl_;
};

class FrontTest : public testing::Test {
 protected:
  void Start(FrontOptions options = {}) {
    auto front = Front::Start(std::move(options), [this](int fd) {
      last_fd_ = fd;
      echoes_.emplace_back([this, fd] { Echo(fd); });
    });
    ASSERT_OK(front);
    front_ = *std::move(front);
  }
  // As the HTTP port has it: the Front asks for the server's end.
  void StartHttp(const FrontLimits& limits) {
    Start({.limits = limits, .connect = [this] {
             std::array<int, 2> ends{};
             constexpr int kKind = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
             if (socketpair(AF_UNIX, kKind, 0, ends.data()) != 0) return -1;
             last_fd_ = ends[1];
             echoes_.emplace_back([this, fd = ends[1]] { Echo(fd); });
             return ends[0];
           }});
  }
  // What gRPC is elsewhere: sends back what comes until the other side closes.
  void Echo(int fd) {
    const Descriptor owner(fd);
    std::string piece(65536, '\0');
    for (;;) {
      pollfd ready{fd, POLLIN, 0};
      poll(&ready, 1, -1);
      const ssize_t got = recv(fd, piece.data(), piece.size(), 0);
      if (got <= 0) return;
      for (ssize_t at = 0; at < got && !hold_;) {
        const ssize_t put =
            send(fd, piece.data() + at, static_cast<size_t>(got - at), MSG_NOSIGNAL);
        if (put > 0) at += put;
        if (put < 0 && errno != EAGAIN) return;
        pollfd room{fd, POLLOUT, 0};
        if (put < 0) poll(&room, 1, -1);
      }
    }
  }
  void TearDown() override {
    front_.reset();  // the echoes end
    for (std::thread& echo : echoes_) echo.join();
  }
  // Counts move when a connection's thread has seen its end.
  template <typename Condition>
  void Await(Condition condition) {
    for (int i = 0; i < 3000 && !condition(); ++i) usleep(10'000);
    EXPECT_TRUE(condition());
  }
  TlsStore* Tls(bool ask_clients = false) {
    files_ = {.certificate = folder_.Write("cert.pem", first_.certificate),
              .key = folder_.Write("key.pem", first_.key),
              .client_ca = ask_clients ? folder_.Write("ca.pem", authority_.certificate) : ""};
    auto store = TlsStore::Load(files_);
    EXPECT_OK(store);
    tls_ = *std::move(store);
    return tls_.get();
  }

  const TempDir folder_;
  const TestCertificate authority_ = MakeAuthority("authority"),
                        first_ = MakeCertificate(authority_, "first");
  TlsFiles files_;
  std::unique_ptr<TlsStore> tls_;
  std::atomic<bool> hold_{false};
  std::atomic<int> last_fd_{-1};
  std::vector<std::thread> echoes_;
  std::unique_ptr<Front> front_;
};

TEST_F(FrontTest, PassesBytesOnBothWays) {
  Start();
  Client client(front_->port());
  const std::string data = DataHeader(100'000) + std::string(100'000, 'x');
  ASSERT_TRUE(client.Send(kPreface.substr(0, 5)));  // the preface in two pieces
  usleep(20'000);
  ASSERT_TRUE(client.Send(kPreface.substr(5) + data));
  EXPECT_EQ(client.Receive(kPreface.size() + data.size()), kPreface + data);
  client.Close();
  Await([&] { return front_->counts().open == 0; });
  EXPECT_EQ(front_->counts().accepted, 1u);
}

// 64 MB that the client does not read for a while: the Front holds a piece, the kernel its buffers.
TEST_F(FrontTest, SlowReadersHoldNoMemory) {
  Start();
  constexpr size_t kFrame = 1 << 20, kFrames = 64;
  Client client(front_->port(), /*receive_buffer=*/65536);
  ASSERT_TRUE(client.Send(kPreface));
  rusage before{}, after{};
  getrusage(RUSAGE_SELF, &before);
  std::thread writer([&] {
    const std::string frame = DataHeader(kFrame) + std::string(kFrame, 'y');
    for (size_t i = 0; i < kFrames; ++i) client.Send(frame);
  });
  usleep(500'000);  // as much as goes in
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 8 << 10);  // KiB; the frame itself is 1 MiB
  EXPECT_EQ(client.Receive(kPreface.size() + kFrames * (kFrame + 9)).size(),
            kPreface.size() + kFrames * (kFrame + 9));
  writer.join();
}

TEST_F(FrontTest, CutsWhatIsNotHttp2BeforeTheServerSeesIt) {
  Start();
  Client client(front_->port());
  ASSERT_TRUE(client.Send("GET / HTTP/1.1\r\n\r\n"));
  EXPECT_TRUE(client.IsCut());
  Await([&] { return front_->counts().not_http2 == 1; });
  EXPECT_EQ(last_fd_, -1);
}

TEST_F(FrontTest, CutsHeaderBlocksWithoutEnd) {
  Start({.limits = {.http2 = {.max_header_bytes = 1000}}});
  Client client(front_->port());
  // HEADERS that do not end, then CONTINUATION after CONTINUATION.
  std::string frame = {0, 1, 0, 9, 0, 0, 0, 0, 1};
  frame += std::string(256, 'h');
  std::string first = frame;
  first[3] = 1;
  ASSERT_TRUE(client.Send(kPreface + first));
  for (int i = 0; i < 10'000 && client.Send(frame); ++i) {
  }
  Await([&] { return front_->counts().limit == 1; });
  Await([&] { return front_->counts().open == 0; });
}

TEST_F(FrontTest, CutsWhoTakesTooLongToBegin) {
  Start({.limits = {.handshake_timeout = absl::Milliseconds(100)}});
  Client silent(front_->port()), slow(front_->port()), headers(front_->port()),
      idle(front_->port());
  ASSERT_TRUE(slow.Send(kPreface.substr(0, 10)));
  ASSERT_TRUE(headers.Send(kPreface + std::string{0, 0, 9, 1, 0, 0, 0, 0, 1} + "h"));
  ASSERT_TRUE(idle.Send(kPreface));
  EXPECT_EQ(idle.Receive(kPreface.size()), kPreface);
  EXPECT_TRUE(silent.IsCut());
  EXPECT_TRUE(slow.IsCut());
  (void)headers.Receive(kPreface.size() + 10);
  EXPECT_TRUE(headers.IsCut());
  Await([&] { return front_->counts().too_slow == 3; });
  EXPECT_EQ(front_->counts().open, 1);  // who has begun may be silent
}

// The front of the HTTP port: the server sees who has asked something, and nobody else.
TEST_F(FrontTest, AnHttpRequestGoesToTheServerWhenItsHeadIsWhole) {
  StartHttp({.handshake_timeout = absl::Milliseconds(100)});
  Client slow(front_->port());
  ASSERT_TRUE(slow.Send("GET / HTTP/1.1\r\nX: "));
  EXPECT_TRUE(slow.IsCut());
  Await([&] { return front_->counts().too_slow == 1; });
  EXPECT_EQ(last_fd_, -1);
  const std::string request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
  Client asks(front_->port());
  ASSERT_TRUE(asks.Send(request.substr(0, 9)) && asks.Send(request.substr(9)));
  EXPECT_EQ(asks.Receive(request.size()), request);
  EXPECT_NE(last_fd_, -1);
}

TEST_F(FrontTest, CutsHttpRequestsThatAreTooLarge) {
  StartHttp({.http2 = {.max_header_bytes = 1000}});
  Client head(front_->port()), body(front_->port());
  for (int i = 0; i < 10'000 && head.Send(std::string(100, 'a')); ++i) {
  }
  Await([&] { return front_->counts().limit == 1; });
  ASSERT_TRUE(body.Send("POST / HTTP/1.1\r\n\r\n"));
  for (int i = 0; i < 10'000 && body.Send(std::string(100, 'b')); ++i) {
  }
  Await([&] { return front_->counts().limit == 2; });
  Await([&] { return front_->counts().open == 0; });
}

TEST_F(FrontTest, AnHttpConnectionEndsInTimeWhoeverHoldsIt) {
  StartHttp({.http_answer_time = absl::Milliseconds(100)});
  Client silent(front_->port());
  ASSERT_TRUE(silent.Send("GET / HTTP/1.1\r\n\r\n"));  // the echo waits for more
  Await([&] { return front_->counts().too_slow == 1; });
  Await([&] { return front_->counts().open == 0; });
}

TEST_F(FrontTest, BoundsConnections) {
  Start({.limits = {.max_connections = 3, .max_connections_per_address = 2}});
  Client first(front_->port()), second(front_->port());
  ASSERT_TRUE(first.Send(kPreface) && second.Send(kPreface));
  EXPECT_EQ(first.Receive(5) + second.Receive(5), "PRI *PRI *");
  Client third(front_->port());
  EXPECT_TRUE(third.IsCut());
  EXPECT_EQ(front_->counts().too_many, 1u);
  second.Close();
  Await([&] { return front_->counts().open == 1; });
  Client fourth(front_->port());
  ASSERT_TRUE(fourth.Send(kPreface));
  EXPECT_EQ(fourth.Receive(5), "PRI *");
}

TEST_F(FrontTest, SurvivesWithoutDescriptors) {
  Start();
  Client before(front_->port());
  ASSERT_TRUE(before.Send(kPreface));
  EXPECT_EQ(before.Receive(5), "PRI *");
  std::vector<Client> clients;
  for (int i = 0; i < 8; ++i) clients.emplace_back(0);  // sockets, made while there are any
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const rlimit none = {1, limit.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  for (Client& client : clients) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(front_->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connect(client.fd(), reinterpret_cast<sockaddr*>(&address), sizeof(address));
  }
  Await([&] { return front_->counts().no_descriptor >= 1; });
  ASSERT_TRUE(before.Send(DataHeader(3) + "abc"));  // goes on
  EXPECT_THAT(before.Receive(kPreface.size() - 5 + 12), HasSubstr("abc"));
  setrlimit(RLIMIT_NOFILE, &limit);
  clients.clear();
  Client after(front_->port());
  ASSERT_TRUE(after.Send(kPreface));
  EXPECT_EQ(after.Receive(5), "PRI *");
}

TEST_F(FrontTest, NumbersOfAPortBeginWhereItWasTold) {
  Start({.lowest_fd = 700});
  Client client(front_->port());
  ASSERT_TRUE(client.Send(kPreface));
  EXPECT_EQ(client.Receive(5), "PRI *");
  EXPECT_GE(last_fd_, 700);
}

TEST_F(FrontTest, StopsAccepting) {
  Start();
  Client before(front_->port());
  ASSERT_TRUE(before.Send(kPreface));
  EXPECT_EQ(before.Receive(5), "PRI *");
  front_->StopAccepting();
  Await([&] {
    Client late(front_->port());
    return !late.connected();
  });
  ASSERT_TRUE(before.Send(DataHeader(3) + "abc"));
  EXPECT_THAT(before.Receive(kPreface.size() - 5 + 12), HasSubstr("abc"));
}

TEST_F(FrontTest, APortThatIsTakenIsNamed) {
  Start();
  EXPECT_THAT(Front::Start({.port = front_->port()}, [](int) {}).status(),
              StatusIs(StatusCode::kUnavailable, HasSubstr(absl::StrCat(front_->port()))));
  EXPECT_THAT(Front::Start({.address = "203.0.113.7"}, [](int) {}).status(),
              StatusIs(StatusCode::kUnavailable, HasSubstr("203.0.113.7")));
}

TEST_F(FrontTest, SpeaksTls) {
  Start({.tls = Tls()});
  TlsClient client(front_->port(), authority_.certificate, folder_);
  ASSERT_TRUE(client.Offer("h2"));
  ASSERT_TRUE(client.Connect());
  const std::string talk = kPreface + DataHeader(300'000) + std::string(300'000, 'z');
  EXPECT_EQ(client.Echo(talk), talk);
  EXPECT_EQ(client.ServerName(), "first");
}

TEST_F(FrontTest, RefusesOldTlsOtherProtocolsAndPlainBytes) {
  Start({.tls = Tls()});
  TlsClient old(front_->port(), authority_.certificate, folder_);
  old.AtMost(TLS1_1_VERSION);
  EXPECT_FALSE(old.Connect());
  TlsClient http1(front_->port(), authority_.certificate, folder_);
  ASSERT_TRUE(http1.Offer("http/1.1"));
  EXPECT_FALSE(http1.Connect());
  Client plain(front_->port());
  ASSERT_TRUE(plain.Send(kPreface));
  (void)plain.Receive(100);  // an alert, perhaps
  EXPECT_TRUE(plain.IsCut());
  Await([&] { return front_->counts().handshake == 3; });
  EXPECT_EQ(last_fd_, -1);
}

TEST_F(FrontTest, AsksClientsForACertificate) {
  Start({.tls = Tls(/*ask_clients=*/true)});
  const TestCertificate own = MakeCertificate(authority_, "client");
  TlsClient known(front_->port(), authority_.certificate, folder_, &own);
  ASSERT_TRUE(known.Connect());
  EXPECT_EQ(known.Echo(kPreface), kPreface);
  // In TLS 1.3 the client hears of it when it reads.
  TlsClient nobody(front_->port(), authority_.certificate, folder_);
  EXPECT_TRUE(!nobody.Connect() || nobody.Echo(kPreface).empty());
  const TestCertificate others = MakeAuthority("others");
  const TestCertificate stranger_own = MakeCertificate(others, "stranger");
  TlsClient stranger(front_->port(), authority_.certificate, folder_, &stranger_own);
  EXPECT_TRUE(!stranger.Connect() || stranger.Echo(kPreface).empty());
  Await([&] { return front_->counts().handshake == 2; });
}

TEST_F(FrontTest, ARenewedCertificateIsForThoseWhoCome) {
  Start({.tls = Tls()});
  TlsClient before(front_->port(), authority_.certificate, folder_);
  ASSERT_TRUE(before.Connect());
  EXPECT_EQ(before.Echo(kPreface), kPreface);
  ASSERT_OK_AND_ASSIGN(bool changed, tls_->Reload());
  EXPECT_FALSE(changed);
  const TestCertificate second = MakeCertificate(authority_, "second");
  folder_.Write("cert.pem", second.certificate);
  // The key is still the old one: nothing changes.
  EXPECT_THAT(tls_->Reload().status(),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("tls.key=")));
  folder_.Write("key.pem", second.key);
  ASSERT_OK_AND_ASSIGN(changed, tls_->Reload());
  EXPECT_TRUE(changed);
  TlsClient after(front_->port(), authority_.certificate, folder_);
  ASSERT_TRUE(after.Connect());
  EXPECT_EQ(after.ServerName(), "second");
  const std::string more = DataHeader(3) + "abc";
  EXPECT_EQ(before.Echo(more), more);  // lives on
}

TEST(TlsStoreTest, NamesTheFileThatIsWrong) {
  const TempDir folder;
  const TestCertificate authority = MakeAuthority("a"), one = MakeCertificate(authority, "one"),
                        two = MakeCertificate(authority, "two");
  const std::string certificate = folder.Write("c.pem", one.certificate),
                    key = folder.Write("k.pem", one.key), other = folder.Write("o.pem", two.key),
                    text = folder.Write("t.pem", "no PEM"), empty = folder.Write("e.pem", "");
  const auto load = [](const TlsFiles& files) { return TlsStore::Load(files).status(); };
  const auto bad = [](const std::string& part) {
    return StatusIs(StatusCode::kInvalidArgument, HasSubstr(part));
  };
  EXPECT_OK(load({certificate, key, certificate}));
  EXPECT_THAT(load({certificate, "", ""}), bad("tls.key"));
  EXPECT_THAT(load({"", key, ""}), bad("tls.certificate"));
  EXPECT_THAT(load({certificate, other, ""}), bad("tls.key=" + other));
  EXPECT_THAT(load({text, key, ""}), bad("tls.certificate=" + text));
  EXPECT_THAT(load({certificate, key, text}), bad("tls.client_ca=" + text));
  EXPECT_THAT(load({certificate, key, empty}), bad("tls.client_ca=" + empty));
  EXPECT_THAT(load({folder.path() + "/none", key, ""}), bad("/none"));
  ASSERT_OK_AND_ASSIGN(const auto store, TlsStore::Load({certificate, key, ""}));
  EXPECT_NEAR(absl::ToDoubleSeconds(store->expiry() - absl::Now()), 3600, 60);
}

}  // namespace
}  // namespace assay
