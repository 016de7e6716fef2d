#include "server/front/front.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"
#include "server/front/connection.h"

namespace assay {
namespace {

constexpr int kBacklog = 512, kEvents = 128, kMostLoops = 4;
constexpr uint32_t kBoth = EPOLLIN | EPOLLOUT | EPOLLET;
constexpr int kTickMs = 500;                     // deadlines are looked at this often
constexpr std::chrono::milliseconds kPause(10);  // without any descriptor
constexpr absl::Duration kBetweenLogs = absl::Seconds(1);

std::string LastError() { return std::strerror(errno); }

struct Address {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  sockaddr* get() { return reinterpret_cast<sockaddr*>(&storage); }
  // Without the port.
  std::string Host() const {
    std::array<char, NI_MAXHOST> host{};
    const int failed = getnameinfo(reinterpret_cast<const sockaddr*>(&storage), length, host.data(),
                                   host.size(), nullptr, 0, NI_NUMERICHOST);
    return failed != 0 ? "unknown" : host.data();
  }
};

// `what`: of the protocol, for errors.
absl::StatusOr<Descriptor> Listen(const std::string& address, int port, const char* what) {
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const std::string host = address.size() > 2 && address.front() == '['
                               ? address.substr(1, address.size() - 2)
                               : address;
  if (const int failed = getaddrinfo(host.c_str(), absl::StrCat(port).c_str(), &hints, &found);
      failed != 0)
    return absl::UnavailableError(absl::StrCat("cannot listen for ", what, " on ", address, ":",
                                               port, ": ", gai_strerror(failed)));
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  Descriptor listener(socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int yes = 1;
  setsockopt(listener.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  if (!listener.valid() || bind(listener.get(), found->ai_addr, found->ai_addrlen) != 0 ||
      listen(listener.get(), kBacklog) != 0)
    return absl::UnavailableError(
        absl::StrCat("cannot listen for ", what, " on ", address, ":", port, ": ", LastError(),
                     ": is the port in use, or the address not of this host?"));
  return listener;
}

int PortOf(const Descriptor& listener) {
  Address bound;
  if (getsockname(listener.get(), bound.get(), &bound.length) != 0) return 0;
  return ntohs(bound.storage.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6*>(&bound.storage)->sin6_port
                   : reinterpret_cast<const sockaddr_in*>(&bound.storage)->sin_port);
}

}  // namespace

// What the loops have in common.
struct Front::Shared {
  FrontOptions options;
  std::function<void(int)> serve;
  Descriptor listener;
  int port = 0;
  std::atomic<bool> stop{false}, accepts{true};  // flags that nothing else is ordered by
  mutable Mutex mu;
  FrontCounts counts ABSL_GUARDED_BY(mu);
  std::map<std::string, int> of_address ABSL_GUARDED_BY(mu);
  absl::Time logged ABSL_GUARDED_BY(mu) = absl::InfinitePast();
  uint64_t unlogged ABSL_GUARDED_BY(mu) = 0;

  // False: there are too many, in all or of this address.
  bool Admit(const std::string& address) {
    const std::string counted = CountedAs(address);
    const MutexLock lock(mu);
    int& of = of_address[counted];
    const FrontLimits& limits = options.limits;
    const bool many =
        limits.max_connections_per_address > 0 && of >= limits.max_connections_per_address;
    if (many || counts.open >= limits.max_connections) {
      if (of == 0) of_address.erase(counted);
      ++counts.too_many;
      return false;
    }
    ++of;
    ++counts.open;
    ++counts.accepted;
    return true;
  }
  void Ended(const std::string& address, const absl::Status& why) {
    {
      const MutexLock lock(mu);
      --counts.open;
      if (const auto of = of_address.find(CountedAs(address));
          of != of_address.end() && --of->second == 0)
        of_address.erase(of);
      if (why.ok()) return;
      ++CountOf(why);
    }
    LogCut(address, std::string(why.message()));
  }
  // One line a second, with how many there were.
  void LogCut(const std::string& address, const std::string& reason) {
    uint64_t others = 0;
    {
      const MutexLock lock(mu);
      const absl::Time now = SteadyClock().Now();
      if (now - logged < kBetweenLogs) {
        ++unlogged;
        return;
      }
      logged = now;
      others = std::exchange(unlogged, 0);
    }
    Log(LogLevel::kWarning, "connection cut",
        {{"peer", address}, {"reason", reason}, {"others", absl::StrCat(others)}});
  }

 private:
  uint64_t& CountOf(const absl::Status& why) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    switch (why.code()) {
      case absl::StatusCode::kInvalidArgument:
        return counts.not_http2;
      case absl::StatusCode::kUnauthenticated:
        return counts.handshake;
      case absl::StatusCode::kDeadlineExceeded:
        return counts.too_slow;
      case absl::StatusCode::kResourceExhausted:
        return counts.limit;
      default:
        return counts.not_taken;
    }
  }
};

// A thread and its connections. The first accepts for all.
class Front::Loop {
 public:
  Loop(Shared& shared, bool accepts)
      : shared_(shared),
        accepts_(accepts),
        poll_(epoll_create1(EPOLL_CLOEXEC)),
        wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    Watch(wake_.get(), EPOLLIN, &wake_);
    if (accepts) {
      Watch(shared_.listener.get(), EPOLLIN, &shared_.listener);
      spare_ = Descriptor(open("/dev/null", O_RDONLY | O_CLOEXEC));
    }
  }
  ~Loop() {
    Wake();
    if (thread_.joinable()) thread_.join();
    TakeIn();
    for (const auto& [key, held] : held_)
      shared_.Ended(held->connection.address(), absl::OkStatus());
  }
  void Start(std::vector<Loop*> all) {
    all_ = std::move(all);
    thread_ = std::thread([this] { Run(); });
  }
  void Wake() {
    const uint64_t one = 1;
    (void)!write(wake_.get(), &one, sizeof(one));
  }

 private:
  struct Held {
    Held(Descriptor client, std::string address, Connection::Options o)
        : options(std::move(o)),
          connection(std::move(client), std::move(address), options, SteadyClock().Now()) {}
    const Connection::Options options;
    Connection connection;
    bool server_known = false;  // to the kernel
  };

  // Both ends of a connection tell when something changes, once (EPOLLET); what is ready is moved
  // until nothing is. `of` of a client has its lowest bit set.
  void Watch(int fd, uint32_t events, void* of) {
    epoll_event event{};
    event.events = events;
    event.data.ptr = of;
    epoll_ctl(poll_.get(), EPOLL_CTL_ADD, fd, &event);
  }
  static void* ClientOf(Held* held) { return reinterpret_cast<std::byte*>(held) + 1; }
  void Run();
  void Accept();
  void TakeIn();
  void Take(std::unique_ptr<Held> held);
  void Move(Held* held);
  void LookAtDeadlines();
  void End(Held* held);
  Descriptor ConnectToServer(PeerAddresses::Peer peer);

  Shared& shared_;
  const bool accepts_;
  Descriptor poll_, wake_, spare_;
  std::vector<Loop*> all_;
  size_t next_ = 0;  // of the loops, for who comes
  // Not thread_local: that would come out of the small stacks of civetweb's threads, too.
  std::vector<std::byte> scratch_ = std::vector<std::byte>(Connection::kPieceBytes);
  std::map<Held*, std::unique_ptr<Held>> held_;
  std::vector<Held*> again_;
  Mutex mu_;
  std::vector<std::unique_ptr<Held>> arriving_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

Descriptor Front::Loop::ConnectToServer(PeerAddresses::Peer peer) {
  if (!shared_.accepts) return {};
  if (shared_.options.connect) return Descriptor(shared_.options.connect());
  std::array<int, 2> ends{};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return {};
  Descriptor ours(ends[0]);
  int theirs = ends[1];
  if (theirs < shared_.options.lowest_fd) {
    const Descriptor low(theirs);
    theirs = fcntl(theirs, F_DUPFD_CLOEXEC, shared_.options.lowest_fd);
    if (theirs < 0) return {};
  }
  if (theirs >= shared_.options.end_fd) {
    const Descriptor too_high(theirs);
    return {};
  }
  if (shared_.options.addresses != nullptr) shared_.options.addresses->Set(theirs, std::move(peer));
  shared_.serve(theirs);
  return ours;
}

void Front::Loop::Accept() {
  while (shared_.accepts) {
    Address from;
    Descriptor client(
        accept4(shared_.listener.get(), from.get(), &from.length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!client.valid()) {
      if (errno != EMFILE && errno != ENFILE) return;
      {
        const MutexLock lock(shared_.mu);
        ++shared_.counts.no_descriptor;
      }
      // With the spare one it is taken and closed: it would wait, and wake us, for ever.
      spare_ = Descriptor();
      { const Descriptor taken(accept4(shared_.listener.get(), nullptr, nullptr, SOCK_CLOEXEC)); }
      spare_ = Descriptor(open("/dev/null", O_RDONLY | O_CLOEXEC));
      if (spare_.valid()) continue;
      std::this_thread::sleep_for(
          kPause);  // another thread took it: who waits would wake us at once
      return;
    }
    const std::string host = from.Host();
    if (!shared_.Admit(host)) {
      shared_.LogCut(host, "too many connections");
      continue;
    }
    const int yes = 1;
    setsockopt(client.get(), IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
    Loop& loop = *all_[next_++ % all_.size()];
    const TlsStore* const tls = shared_.options.tls;
    auto held = std::make_unique<Held>(
        std::move(client), host,
        Connection::Options{.limits = shared_.options.limits,
                            .speaks_http2 = shared_.options.connect == nullptr,
                            .tls = tls == nullptr ? nullptr : tls->context(),
                            .scratch = loop.scratch_,
                            .connect = [&loop, host](std::string subject) {
                              return loop.ConnectToServer({host, std::move(subject)});
                            }});
    if (&loop == this) {
      Take(std::move(held));
      continue;
    }
    {
      const MutexLock lock(loop.mu_);
      loop.arriving_.push_back(std::move(held));
    }
    loop.Wake();
  }
}

void Front::Loop::TakeIn() {
  uint64_t count = 0;
  (void)!read(wake_.get(), &count, sizeof(count));
  std::vector<std::unique_ptr<Held>> arriving;
  {
    const MutexLock lock(mu_);
    arriving.swap(arriving_);
  }
  for (std::unique_ptr<Held>& held : arriving) Take(std::move(held));
}

void Front::Loop::Take(std::unique_ptr<Held> held) {
  Held* const one = held.get();
  held_.emplace(one, std::move(held));
  Watch(one->connection.client_fd(), kBoth, ClientOf(one));
}

void Front::Loop::Move(Held* held) {
  Connection& connection = held->connection;
  if (!connection.Pump(SteadyClock().Now())) return End(held);
  if (connection.again()) again_.push_back(held);
  if (connection.server_fd() < 0 || held->server_known) return;
  held->server_known = true;
  Watch(connection.server_fd(), kBoth, held);
}

void Front::Loop::End(Held* held) {
  shared_.Ended(held->connection.address(), held->connection.end());
  again_.erase(std::remove(again_.begin(), again_.end(), held), again_.end());
  held_.erase(held);  // the kernel forgets what is closed
}

void Front::Loop::LookAtDeadlines() {
  const absl::Time now = SteadyClock().Now();
  std::vector<Held*> late;
  for (const auto& [held, owner] : held_) {
    if (!held->connection.InTime(now)) late.push_back(held);
  }
  for (Held* const held : late) End(held);
}

void Front::Loop::Run() {
  std::array<epoll_event, kEvents> events{};
  std::vector<Held*> ready, gone;
  absl::Time next_tick = SteadyClock().Now() + absl::Milliseconds(kTickMs);
  while (!shared_.stop) {
    const int count = epoll_wait(poll_.get(), events.data(), kEvents, again_.empty() ? kTickMs : 0);
    ready.clear();
    gone.clear();
    ready.swap(again_);
    for (int i = 0; i < count; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      void* const of = event.data.ptr;
      if (of == &wake_) {
        TakeIn();
        if (!shared_.accepts && accepts_) shared_.listener = Descriptor();
      } else if (of == &shared_.listener) {
        Accept();
      } else {
        const bool client = (reinterpret_cast<uintptr_t>(of) & 1) != 0;
        auto* const held = reinterpret_cast<Held*>(static_cast<std::byte*>(of) - (client ? 1 : 0));
        // Both directions are closed, or broken: nobody is there to be served.
        const bool left = client && (event.events & (EPOLLHUP | EPOLLERR)) != 0;
        (left ? gone : ready).push_back(held);
      }
    }
    // Both ends of one may be ready; the first move may end it.
    std::sort(ready.begin(), ready.end());
    ready.erase(std::unique(ready.begin(), ready.end()), ready.end());
    for (Held* const held : gone) {
      ready.erase(std::remove(ready.begin(), ready.end(), held), ready.end());
      End(held);
    }
    for (Held* const held : ready) Move(held);
    if (SteadyClock().Now() < next_tick) continue;
    next_tick = SteadyClock().Now() + absl::Milliseconds(kTickMs);
    LookAtDeadlines();
    if (accepts_ && shared_.options.tick) shared_.options.tick();
  }
}

FrontCounts& FrontCounts::operator+=(const FrontCounts& more) {
  accepted += more.accepted;
  too_many += more.too_many;
  no_descriptor += more.no_descriptor;
  not_http2 += more.not_http2;
  handshake += more.handshake;
  too_slow += more.too_slow;
  limit += more.limit;
  not_taken += more.not_taken;
  open += more.open;
  return *this;
}

Front::Front(std::unique_ptr<Shared> shared) : shared_(std::move(shared)) {
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  for (int i = 0; i < std::clamp(cores / 4, 1, kMostLoops); ++i)
    loops_.push_back(std::make_unique<Loop>(*shared_, i == 0));
  std::vector<Loop*> all;
  for (const auto& loop : loops_) all.push_back(loop.get());
  for (const auto& loop : loops_) loop->Start(all);
}

absl::StatusOr<std::unique_ptr<Front>> Front::Start(FrontOptions options,
                                                    std::function<void(int fd)> serve) {
  auto shared = std::make_unique<Shared>();
  ASSIGN_OR_RETURN(shared->listener, Listen(options.address, options.port, options.protocol));
  shared->port = PortOf(shared->listener);
  shared->options = std::move(options);
  shared->serve = std::move(serve);
  return std::unique_ptr<Front>(new Front(std::move(shared)));
}

Front::~Front() {
  StopAccepting();
  shared_->stop = true;
  for (const auto& loop : loops_) loop->Wake();
  loops_.clear();
}

int Front::port() const { return shared_->port; }

FrontCounts Front::counts() const {
  const MutexLock lock(shared_->mu);
  return shared_->counts;
}

void Front::StopAccepting() {
  shared_->accepts = false;
  loops_.front()->Wake();
}

}  // namespace assay
