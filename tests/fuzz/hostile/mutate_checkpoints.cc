// Hostile files: sound ones of every format are changed, loaded as the server loads them, and what
// can be loaded runs for one step (a changed weight is legal). Each must be refused with a Status
// that says where, or run; never a crash, a hang, or memory beyond a bound.
//
//   mutate_checkpoints [--files N] [--format NAME] [--seed S] [--first I] [--keep FOLDER]
//
// Files I to I + N of a format and seed are always the same. They are tried in child processes, so
// that a crash is counted and the next file is tried; what went wrong is kept in FOLDER. Prints a
// line of totals per format; fails when one went wrong.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/fuzz/hostile/victims.h"
#include "tests/support/golden.h"

namespace assay {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kPatienceSeconds = 20;  // per file; they take milliseconds
#ifdef __SANITIZE_ADDRESS__
constexpr int64_t kMostKib = 2048 << 10;  // the sanitizer's shadow and quarantine included
#else
constexpr int64_t kMostKib = 512 << 10;
#endif
constexpr int kFilesOfChild = 200;

struct Totals {  // shared with the child
  int at = 0;    // the file that is tried
  int refused = 0, refused_later = 0, ran = 0, unnamed = 0, crashed = 0, too_large = 0;
  int64_t most_kib = 0, longest_ms = 0;
};

struct Job {
  std::string format;
  uint64_t seed = 1;
  int first = 0, end = 0;
  std::string folder;  // for the files
  std::string keep;
};

// The largest resident size since the last call, in KiB.
int64_t PeakKib() {
  std::ifstream status("/proc/self/status");
  std::string line;
  int64_t kib = 0;
  while (std::getline(status, line))
    if (line.starts_with("VmHWM:")) kib = std::stoll(line.substr(6));
  std::ofstream("/proc/self/clear_refs") << "5";
  return kib;
}

void Write(const Victim& victim, const fs::path& folder) {
  fs::remove_all(folder);
  for (const auto& [name, bytes] : victim.files) {
    fs::create_directories((folder / name).parent_path());
    std::ofstream(folder / name, std::ios::binary) << bytes;
  }
}

void Keep(const Job& job, int index, const std::string& why) {
  std::printf("%s %d (seed %lu): %s\n", job.format.c_str(), index,
              static_cast<unsigned long>(job.seed), why.c_str());
  if (job.keep.empty()) return;
  fs::create_directories(job.keep);
  fs::copy(job.folder, fs::path(job.keep) / absl::StrCat(job.format, "-", job.seed, "-", index),
           fs::copy_options::recursive | fs::copy_options::overwrite_existing);
}

void Try(const Job& job, const std::vector<Victim>& victims, int index, Totals& totals) {
  Mutations mutations(job.seed * 1000003 + static_cast<uint64_t>(index));
  Victim victim = victims[static_cast<size_t>(index) % victims.size()];
  Damage(job.format, victim, mutations);
  Write(victim, job.folder);
  (void)PeakKib();
  const auto begin = std::chrono::steady_clock::now();
  const Outcome outcome = LoadAndRun(job.format, victim, job.folder);
  const auto took = std::chrono::steady_clock::now() - begin;
  const int64_t kib = PeakKib();
  totals.most_kib = std::max(totals.most_kib, kib);
  totals.longest_ms = std::max<int64_t>(
      totals.longest_ms, std::chrono::duration_cast<std::chrono::milliseconds>(took).count());
  if (outcome.status.ok()) {
    ++totals.ran;
  } else if (outcome.opened) {
    ++totals.refused_later;
  } else if (absl::StrContains(outcome.status.message(), job.folder)) {
    ++totals.refused;
  } else {
    ++totals.unnamed;
    Keep(job, index, absl::StrCat("names no file: ", outcome.status.ToString()));
  }
  if (kib <= kMostKib) return;
  ++totals.too_large;
  Keep(job, index, absl::StrCat("took ", kib, " KiB"));
}

// Tries files from totals.at on, in one process; false: it died at totals.at.
bool RunChild(const Job& job, const std::vector<Victim>& victims, Totals& totals) {
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    for (int tried = 0; totals.at < job.end && tried < kFilesOfChild; ++totals.at, ++tried) {
      alarm(kPatienceSeconds);
      Try(job, victims, totals.at, totals);
    }
    std::fflush(nullptr);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (status == 0) return true;
  ++totals.crashed;
  Keep(job, totals.at,
       WIFSIGNALED(status) ? strsignal(WTERMSIG(status))
                           : absl::StrCat("exit code ", WEXITSTATUS(status)));
  ++totals.at;
  return false;
}

bool Run(const Job& job) {
  void* shared =
      mmap(nullptr, sizeof(Totals), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto& totals = *new (shared) Totals{.at = job.first};
  const std::vector<Victim> victims = VictimsOf(job.format);
  for (const Victim& victim : victims) {  // what is changed is sound before
    Write(victim, job.folder);
    const Outcome outcome = LoadAndRun(job.format, victim, job.folder);
    if (outcome.status.ok()) continue;
    std::printf("%s: the sound %s is refused: %s\n", job.format.c_str(), victim.targets[0].c_str(),
                outcome.status.ToString().c_str());
    if (!outcome.opened) return false;
  }
  while (totals.at < job.end) RunChild(job, victims, totals);
  std::printf(
      "%-12s files=%d refused=%d refused_later=%d ran=%d | crashed=%d no_file_named=%d "
      "too_large=%d "
      "| peak=%ld MiB longest=%ld ms\n",
      job.format.c_str(), job.end - job.first, totals.refused, totals.refused_later, totals.ran,
      totals.crashed, totals.unnamed, totals.too_large, static_cast<long>(totals.most_kib >> 10),
      static_cast<long>(totals.longest_ms));
  const bool good = totals.crashed + totals.unnamed + totals.too_large == 0;
  munmap(shared, sizeof(Totals));
  return good;
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) {
  CLI::App app("Changes sound files and loads them.");
  int files = 300, first = 0;
  uint64_t seed = 1;
  std::string format, keep;
  app.add_option("--files", files, "of each format");
  app.add_option("--first", first, "index of the first one");
  app.add_option("--seed", seed, "of the changes");
  app.add_option("--format", format, "one only")->check(CLI::IsMember(assay::AllFormats()));
  app.add_option("--keep", keep, "where files go that went wrong");
  CLI11_PARSE(app, argc, argv);
  const assay::TempDir folder;
  bool good = true;
  for (const std::string& one : assay::AllFormats()) {
    if (!format.empty() && one != format) continue;
    good = assay::Run({.format = one,
                       .seed = seed,
                       .first = first,
                       .end = first + files,
                       .folder = folder.path() + "/files",
                       .keep = keep}) &&
           good;
  }
  return good ? 0 : 1;
}
