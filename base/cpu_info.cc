#include "base/cpu_info.h"

#include <cpuid.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <sstream>

#include "base/thread_pool.h"

namespace assay {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// First number of a one-line file; kNoLimit when it is absent, "max" or otherwise not a number.
uint64_t ReadLimit(const char* path) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : kNoLimit;
}

// A "Key:   123 kB" line of a /proc file, in bytes; 0 when missing.
uint64_t ReadKilobytes(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) != 0) continue;
    std::istringstream fields(line.substr(key.size()));
    uint64_t kilobytes = 0;
    fields >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

uint64_t CgroupLimit() {
  return std::min(ReadLimit("/sys/fs/cgroup/memory.max"),
                  ReadLimit("/sys/fs/cgroup/memory/memory.limit_in_bytes"));
}
uint64_t CgroupUsage() {
  const uint64_t v2 = ReadLimit("/sys/fs/cgroup/memory.current");
  return v2 != kNoLimit ? v2 : ReadLimit("/sys/fs/cgroup/memory/memory.usage_in_bytes");
}

std::string ModelName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

// XCR0 tells which register files the operating system saves; without that the instructions fault.
uint64_t EnabledState() {
  uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

void ReadFeatures(CpuInfo& info) {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_OSXSAVE) == 0) return;
  const uint64_t state = EnabledState();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6,
             tiles = (state & 0x60000) == 0x60000;
  info.fma = ymm && (c & bit_FMA) != 0;
  info.f16c = ymm && (c & bit_F16C) != 0;
  uint32_t subleaves = 0;
  if (__get_cpuid_count(7, 0, &subleaves, &b, &c, &d) == 0) return;
  info.avx2 = ymm && (b & (1u << 5)) != 0;
  info.avx512f = zmm && (b & (1u << 16)) != 0;
  info.avx512bw = zmm && (b & (1u << 30)) != 0;
  info.avx512_vnni = zmm && (c & (1u << 11)) != 0;
  info.amx_int8 = tiles && (d & (1u << 25)) != 0;
  if (subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
    info.avx_vnni = ymm && (a & (1u << 4)) != 0;
    info.avx512_bf16 = zmm && (a & (1u << 5)) != 0;
  }
}

CpuInfo Probe() {
  CpuInfo info;
  info.model = ModelName();
  info.cores = ThreadPool::AvailableCores();
  const uint64_t physical =
      static_cast<uint64_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  info.memory_bytes = std::min(physical, CgroupLimit());
  ReadFeatures(info);
  return info;
}

}  // namespace

std::string CpuInfo::isa() const {
  if (amx_int8) return "amx";
  if (avx512_vnni) return "avx512_vnni";
  if (avx512bw) return "avx512";
  if (avx_vnni) return "avx_vnni";
  if (avx2 && fma) return "avx2";
  return "x86-64";
}

const CpuInfo& HostCpu() {
  static const CpuInfo* const info = new CpuInfo(Probe());
  return *info;
}

uint64_t AvailableMemoryBytes() {
  uint64_t available = ReadKilobytes("/proc/meminfo", "MemAvailable:");
  const uint64_t limit = CgroupLimit(), usage = CgroupUsage();
  if (limit != kNoLimit && usage != kNoLimit)
    available = std::min(available, limit > usage ? limit - usage : 0);
  return available;
}

uint64_t ResidentBytes() { return ReadKilobytes("/proc/self/status", "VmRSS:"); }

}  // namespace assay
