#include "engine/process_metrics.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

namespace assay {
namespace {

double BootTimeSeconds() {
  std::ifstream stat("/proc/stat");
  for (std::string key; stat >> key;) {
    double value = 0;
    if (key == "btime" && stat >> value) return value;
    stat.ignore(1 << 16, '\n');
  }
  return 0;
}

double CountOpenFds() {
  DIR* dir = opendir("/proc/self/fd");
  if (dir == nullptr) return 0;
  int entries = 0;
  while (readdir(dir) != nullptr) ++entries;
  closedir(dir);
  return entries - 3;  // ".", ".." and the descriptor of the listing itself
}

}  // namespace

ProcessMetrics ReadProcessMetrics() {
  ProcessMetrics out;
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  // Fields after the command name, which is in parentheses and may hold anything: proc(5).
  const size_t end_of_name = line.rfind(')');
  if (end_of_name != std::string::npos) {
    std::istringstream rest(line.substr(end_of_name + 1));
    std::string skipped;
    const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    double value = 0;
    for (int field = 3; field <= 24; ++field) {
      if (field == 3) {
        rest >> skipped;  // state, a letter
        continue;
      }
      rest >> value;
      if (field == 14 || field == 15) out.cpu_seconds += value / ticks;
      if (field == 20) out.threads = value;
      if (field == 22) out.start_time_seconds = BootTimeSeconds() + value / ticks;
      if (field == 23) out.virtual_bytes = value;
      if (field == 24) out.resident_bytes = value * static_cast<double>(sysconf(_SC_PAGESIZE));
    }
  }
  out.open_fds = CountOpenFds();
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) out.max_fds = static_cast<double>(limit.rlim_cur);
  return out;
}

}  // namespace assay
