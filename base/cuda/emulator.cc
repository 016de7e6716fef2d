#undef _FORTIFY_SOURCE  // its longjmp takes a jump to another stack for a mistake
#include "base/cuda/emulator.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

namespace assay::emulated {
namespace {

constexpr int kLanes = 32, kMaxThreads = 1024;
constexpr size_t kStackBytes = 256 << 10, kSlotBytes = 64, kMaxShared = 227 << 10;
constexpr int kMostOfYAndZ = 65535;  // blocks of a grid

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool valid;
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Fiber {
  int thread = 0;
  State state = State::kDone;
  std::string_view waits_for;
  sigjmp_buf resume;
  ucontext_t start;
  bool fresh = true;  // has not run yet
  std::unique_ptr<char[]> stack;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> groups;
};

struct Warp {
  // Two of them: a lane that is late to read one finds it whole while the next is written.
  alignas(64) std::byte slots[2][kLanes * kSlotBytes];
  int arrived = 0, turn = 0;
};

// Everything of the launch that runs.
struct Machine {
  std::mutex mutex;
  sigjmp_buf scheduler;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  Fiber* running = nullptr;
  LaunchShape shape;
  Shape3 block;
  const std::function<void()>* body = nullptr;
  std::byte* shared_end = nullptr;  // an inaccessible page begins here
  std::byte *dynamic_shared = nullptr, *static_shared = nullptr;
  size_t static_used = 0, most_shared = kMaxShared;
  std::map<const void*, std::pair<size_t, size_t>> pieces;  // tag -> offset, bytes
  Order order = Order::kAscending;
  std::mt19937 random{1};
};

// Of the thread that launches.
struct Host {
  int device = 0;
  bool capturing = false;
  std::vector<std::function<void()>> captured;
};
thread_local Host host;

size_t PageBytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

size_t InPages(size_t bytes) { return (bytes + PageBytes() - 1) / PageBytes() * PageBytes(); }

// The end of `bytes`, rounded up to pages, of memory before a page that cannot be touched.
std::byte* MapWithGuard(size_t bytes) {
  const size_t usable = InPages(bytes);
  void* const memory = mmap(nullptr, usable + PageBytes(), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  auto* const end = static_cast<std::byte*>(memory) + usable;
  mprotect(end, PageBytes(), PROT_NONE);
  return end;
}

Machine& The() {
  static Machine machine;
  return machine;
}

void Suspend(State state, std::string_view what) {
  Machine& m = The();
  Fiber& self = *m.running;
  self.state = state;
  self.waits_for = what;
  if (sigsetjmp(self.resume, 0) == 0) siglongjmp(m.scheduler, 1);
}

void Enter() {
  Machine& m = The();
  (*m.body)();
  Fiber& self = *m.running;
  if (!self.uncommitted.empty() || !self.groups.empty()) {
    // Legal on a GPU, and always a mistake: what was copied is never used.
    Die("a thread ends with asynchronous copies that nobody waited for");
  }
  self.state = State::kDone;
  siglongjmp(m.scheduler, 1);
}

void Resume(Fiber& fiber) {
  Machine& m = The();
  m.running = &fiber;
  fiber.state = State::kReady;
  if (sigsetjmp(m.scheduler, 0) == 0) {
    if (fiber.fresh) {
      fiber.fresh = false;
      setcontext(&fiber.start);
    }
    siglongjmp(fiber.resume, 1);
  }
  m.running = nullptr;
}

void Prepare(Fiber& fiber, int thread) {
  fiber.thread = thread;
  fiber.state = State::kReady;
  fiber.waits_for = {};
  fiber.fresh = true;
  if (fiber.stack == nullptr) fiber.stack = std::make_unique<char[]>(kStackBytes);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, Enter, 0);
}

std::vector<int> OrderOf(int count) {
  Machine& m = The();
  std::vector<int> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  if (m.order == Order::kDescending) std::reverse(order.begin(), order.end());
  if (m.order == Order::kShuffled) std::shuffle(order.begin(), order.end(), m.random);
  return order;
}

// Runs what can run, warp by warp, each as far as it comes. Whether anything did.
bool RunReady() {
  Machine& m = The();
  bool any = false;
  for (const int warp : OrderOf(m.shape.threads / kLanes)) {
    for (bool again = true; again;) {
      again = false;
      for (const int lane : OrderOf(kLanes)) {
        const int thread = warp * kLanes + lane;
        Fiber& fiber = *m.fibers[static_cast<size_t>(thread)];
        if (fiber.state != State::kReady) continue;
        Resume(fiber);
        any = again = true;
      }
    }
  }
  return any;
}

void ReleaseBarrier() {
  Machine& m = The();
  const auto all = [&](State state) {
    return std::all_of(m.fibers.begin(), m.fibers.begin() + m.shape.threads,
                       [&](const auto& fiber) { return fiber->state == state; });
  };
  if (all(State::kDone)) return;
  if (!all(State::kAtBarrier)) {
    for (int i = 0; i < m.shape.threads; ++i) {
      const Fiber& f = *m.fibers[static_cast<size_t>(i)];
      std::fprintf(stderr, "  thread %d: %s %.*s\n", i,
                   f.state == State::kDone ? "has ended" : "waits in",
                   static_cast<int>(f.waits_for.size()), f.waits_for.data());
    }
    std::fprintf(stderr, "CHECK failed: block (%d, %d, %d) hangs: not all threads arrive\n",
                 m.block.x, m.block.y, m.block.z);
    std::abort();
  }
  for (int i = 0; i < m.shape.threads; ++i) m.fibers[static_cast<size_t>(i)]->state = State::kReady;
}

void RunBlock() {
  Machine& m = The();
  std::memset(m.static_shared, 0xff, m.static_used);
  std::memset(m.dynamic_shared, 0xff, m.shape.shared_bytes);
  m.static_used = 0;
  m.pieces.clear();
  m.warps.assign(static_cast<size_t>(m.shape.threads / kLanes), Warp{});
  for (int i = 0; i < m.shape.threads; ++i) Prepare(*m.fibers[static_cast<size_t>(i)], i);
  while (RunReady()) ReleaseBarrier();
}

void Run(const LaunchShape& shape, const std::function<void()>& thread) {
  Machine& m = The();
  const std::lock_guard lock(m.mutex);
  m.shape = shape;
  m.body = &thread;
  if (shape.threads <= 0 || shape.threads > kMaxThreads || shape.threads % kLanes != 0)
    Die("threads of a block: a multiple of 32, at most 1024");
  if (shape.grid.x < 1 || shape.grid.y < 1 || shape.grid.z < 1 || shape.grid.y > kMostOfYAndZ ||
      shape.grid.z > kMostOfYAndZ)
    Die("a grid has at least one block, and at most 65535 in y and z");
  if (shape.shared_bytes > m.most_shared) Die("more shared memory than a block of the device has");
  while (m.fibers.size() < static_cast<size_t>(shape.threads))
    m.fibers.push_back(std::make_unique<Fiber>());
  if (m.shared_end == nullptr) {
    m.shared_end = MapWithGuard(kMaxShared);
    m.static_shared = MapWithGuard(kMaxShared) - kMaxShared;
    m.static_used = kMaxShared;
  }
  m.dynamic_shared = m.shared_end - (shape.shared_bytes + 15) / 16 * 16;
  for (m.block.z = 0; m.block.z < shape.grid.z; ++m.block.z)
    for (m.block.y = 0; m.block.y < shape.grid.y; ++m.block.y)
      for (m.block.x = 0; m.block.x < shape.grid.x; ++m.block.x) RunBlock();
  m.body = nullptr;
}

}  // namespace

int ThreadX() { return The().running->thread; }
Shape3 Block() { return The().block; }
int BlockThreads() { return The().shape.threads; }
Shape3 Grid() { return The().shape.grid; }

void BarrierOfBlock() { Suspend(State::kAtBarrier, "SyncThreads"); }

const std::byte* ExchangeInWarp(const void* mine, size_t bytes, std::string_view what) {
  Machine& m = The();
  if (bytes > kSlotBytes) Die("an operand of a warp operation is too large");
  const int thread = ThreadX(), first = thread / kLanes * kLanes;
  Warp& warp = m.warps[static_cast<size_t>(thread / kLanes)];
  std::byte* const slots = warp.slots[warp.turn];
  std::memcpy(slots + static_cast<size_t>(thread - first) * kSlotBytes, mine, bytes);
  if (++warp.arrived < kLanes) {
    Suspend(State::kInWarp, what);
    return slots;
  }
  warp.arrived = 0;
  warp.turn ^= 1;
  for (int i = first; i < first + kLanes; ++i) {
    Fiber& other = *m.fibers[static_cast<size_t>(i)];
    if (i == thread) continue;
    if (other.waits_for != what) Die("lanes of a warp are in different operations");
    other.state = State::kReady;
  }
  return slots;
}

std::byte* SharedPiece(const void* tag, size_t bytes) {
  Machine& m = The();
  const auto [piece, added] = m.pieces.try_emplace(tag, m.static_used, bytes);
  if (added) m.static_used += (bytes + 127) / 128 * 128;
  if (m.static_used > (48 << 10)) Die("static shared memory is at most 48 KiB");
  if (m.static_used + m.shape.shared_bytes > m.most_shared)
    Die("more shared memory than a block of the device has");
  if (piece->second.second != bytes) Die("one piece of shared memory has two sizes");
  return m.static_shared + piece->second.first;
}

std::byte* DynamicShared() { return The().dynamic_shared; }

void CopyAsync(void* to, const void* from, size_t bytes, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
      (valid && reinterpret_cast<uintptr_t>(from) % bytes != 0)) {
    Die("an asynchronous copy is not aligned to its size");
  }
  The().running->uncommitted.push_back({to, from, bytes, valid});
}

void CopyAsyncCommit() {
  Fiber& self = *The().running;
  self.groups.push_back(std::move(self.uncommitted));
  self.uncommitted.clear();
}

void CopyAsyncWait(int groups_left) {
  Fiber& self = *The().running;
  for (; static_cast<int>(self.groups.size()) > groups_left; self.groups.pop_front()) {
    for (const Copy& copy : self.groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
  }
}

void Die(std::string_view what) {
  const Machine& m = The();
  std::fprintf(stderr, "CHECK failed: %.*s: block (%d, %d, %d) of (%d, %d, %d), thread %d of %d\n",
               static_cast<int>(what.size()), what.data(), m.block.x, m.block.y, m.block.z,
               m.shape.grid.x, m.shape.grid.y, m.shape.grid.z,
               m.running == nullptr ? -1 : m.running->thread, m.shape.threads);
  std::abort();
}

void set_order(Order order, uint32_t seed) {
  The().order = order;
  The().random.seed(seed);
}

void set_most_shared(size_t bytes) { The().most_shared = std::min(bytes, kMaxShared); }

void Launch(const LaunchShape& shape, std::function<void()> thread) {
  Enqueue([shape, thread = std::move(thread)] { Run(shape, thread); });
}

void Enqueue(std::function<void()> work) {
  if (host.capturing) {
    host.captured.push_back(std::move(work));
  } else {
    work();
  }
}

void SetDevice(int device) { host.device = device; }

void* StreamOf(int device) {
  static char streams[8];
  return streams + device;
}

bool IsOfThisDevice(const void* stream) {
  return stream == nullptr || stream == StreamOf(host.device);
}

void BeginCapture() {
  host.captured.clear();
  host.capturing = true;
}

std::function<void()> EndCapture() {
  host.capturing = false;
  return [list = std::exchange(host.captured, {})] {
    for (const auto& work : list) work();
  };
}

void* AllocateDevice(size_t bytes) {
  // 256-byte aligned memory whose last bytes lie before the guard where the size allows it.
  std::byte* const end = MapWithGuard(bytes);
  if (end == nullptr) return nullptr;
  std::byte* const begin = end - (bytes + 255) / 256 * 256;
  std::memset(begin, 0xff, bytes);
  return begin;
}

void FreeDevice(void* memory, size_t bytes) {
  std::byte* const end = static_cast<std::byte*>(memory) + (bytes + 255) / 256 * 256;
  munmap(end - InPages(bytes), InPages(bytes) + PageBytes());
}

}  // namespace assay::emulated
