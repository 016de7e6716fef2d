// What the host's processor can do. Read once; every choice of kernel goes through it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace assay {

struct CpuInfo {
  std::string model;          // "AMD EPYC 7763 64-Core Processor"
  int cores = 0;              // that this process may use
  uint64_t memory_bytes = 0;  // physical, or the cgroup's limit if lower
  bool avx2 = false, fma = false, f16c = false, avx512f = false, avx512bw = false,
       avx512_vnni = false, avx_vnni = false, avx512_bf16 = false, amx_int8 = false;
  std::string isa()
      const;  // best level in words: "avx2", "avx512_vnni", ... for policy and reports
};

const CpuInfo& HostCpu();

// /proc/meminfo MemAvailable, bounded by the cgroup. Bytes.
uint64_t AvailableMemoryBytes();
// VmRSS of this process. Bytes.
uint64_t ResidentBytes();

}  // namespace assay
