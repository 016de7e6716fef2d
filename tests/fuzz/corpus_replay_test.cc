// Every file of a fuzz target's corpus through the target, in the normal build: what the fuzzer
// once found stays found.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace assay {
namespace {

TEST(CorpusReplayTest, EveryInputIsSurvived) {
  int num_inputs = 0;
  for (const auto& entry : std::filesystem::directory_iterator(ASSAY_FUZZ_CORPUS)) {
    SCOPED_TRACE(entry.path().string());
    std::ifstream in(entry.path(), std::ios::binary);
    // A vector of exactly the file's size, so that a sanitizer sees a read past it.
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
    EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()),
              0);
    ++num_inputs;
  }
  EXPECT_GT(num_inputs, 0) << "no corpus at " << ASSAY_FUZZ_CORPUS;
}

}  // namespace
}  // namespace assay
