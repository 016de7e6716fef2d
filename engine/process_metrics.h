// The standard process metrics, read from /proc/self at every scrape. Values that cannot be read
// are 0. Thread-safe.
#pragma once

namespace assay {

struct ProcessMetrics {
  double cpu_seconds = 0;     // user and system
  double resident_bytes = 0;  // RSS
  double virtual_bytes = 0;
  double start_time_seconds = 0;  // Unix time
  double open_fds = 0, max_fds = 0;
  double threads = 0;
};
ProcessMetrics ReadProcessMetrics();

}  // namespace assay
