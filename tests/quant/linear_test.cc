// QuantizedLinear: the choice of kernel and the checks of its inputs. Numbers: kernel_test.cc.
#include "quant/linear.h"

#include <set>

#include "base/thread_pool.h"
#include "gtest/gtest.h"
#include "quant/kernels/kernels.h"
#include "quant/schemes/schemes.h"
#include "tests/support/random_tensor.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

QuantizedTensor Encode(const QuantScheme& scheme, Shape shape) {
  const Tensor w = RandomTensor(shape, 1);
  return *scheme.Encode(w.view());
}

TEST(QuantizedLinearTest, PinnedKernelIsTheOneThatRuns) {
  const QuantizedTensor w = Encode(Int8ChannelScheme(), {8, 16});
  ASSERT_OK_AND_ASSIGN(const QuantizedLinear linear,
                       QuantizedLinear::Create(w, {}, {ActivationMode::kA8Token, "reference"}));
  EXPECT_EQ(linear.kernel(), "reference");
  EXPECT_EQ(linear.problem().activation, ActivationMode::kA8Token);
  EXPECT_EQ(linear.problem().scheme, &Int8ChannelScheme());
  EXPECT_TRUE(linear.refusals().empty());
}

TEST(QuantizedLinearTest, UnknownKernelListsTheKnownOnes) {
  const QuantizedTensor w = Encode(F32Scheme(), {8, 16});
  EXPECT_THAT(QuantizedLinear::Create(w, {}, {ActivationMode::kA16, "warp_drive"}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("warp_drive; known: ")));
  EXPECT_THAT(QuantizedLinear::Create(w, {}, {ActivationMode::kA16, "warp_drive"}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("reference")));
}

TEST(QuantizedLinearTest, APinnedKernelThatCannotSaysWhy) {
  const QuantizedTensor w = Encode(F32Scheme(), {8, 16});
  EXPECT_THAT(QuantizedLinear::Create(w, {}, {ActivationMode::kA8Token, "avx2_int8"}),
              StatusIs(absl::StatusCode::kUnimplemented,
                       HasSubstr("scheme=f32 activation=a8_token shape=[8,16]; avx2_int8: ")));
}

TEST(QuantizedLinearTest, RefusalsSayWhyFasterKernelsWereNotTaken) {
  const QuantizedTensor w = Encode(F32Scheme(), {8, 16});
  ASSERT_OK_AND_ASSIGN(const QuantizedLinear linear,
                       QuantizedLinear::Create(w, {}, {ActivationMode::kA16, ""}));
  size_t position = 0;
  while (AllLinearKernels()[position]->name() != linear.kernel()) ++position;
  ASSERT_EQ(linear.refusals().size(), position);
  for (size_t i = 0; i < position; ++i) {
    EXPECT_THAT(linear.refusals()[i],
                StartsWith(std::string(AllLinearKernels()[i]->name()) + ": "));
  }
}

TEST(QuantizedLinearTest, ReferenceIsLastAndNamesAreUnique) {
  EXPECT_EQ(AllLinearKernels().back(), &ReferenceKernel());
  std::set<std::string_view> names;
  for (const LinearKernel* kernel : AllLinearKernels()) names.insert(kernel->name());
  EXPECT_EQ(names.size(), AllLinearKernels().size());
}

TEST(QuantizedLinearTest, RefusesAWeightWhoseTensorsDoNotFitItsShape) {
  QuantizedTensor w = Encode(Int8ChannelScheme(), {8, 16});
  w.scales = TensorOf({7}, std::vector<float>(7, 1.0f));
  EXPECT_THAT(QuantizedLinear::Create(w, {}, {ActivationMode::kA8Token, ""}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("scales=f32[7]")));
  EXPECT_THAT(QuantizedLinear::Create(QuantizedTensor{}, {}, {}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no scheme")));
}

TEST(QuantizedLinearTest, RefusesABiasOfAnotherLength) {
  const QuantizedTensor w = Encode(F32Scheme(), {8, 16});
  EXPECT_THAT(
      QuantizedLinear::Create(w, TensorOf({9}, std::vector<float>(9)), {ActivationMode::kA16, ""}),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("bias=f32[9]")));
}

TEST(QuantizedLinearTest, CountsWeightAndBiasBytes) {
  const QuantizedTensor w = Encode(F32Scheme(), {8, 16});
  ASSERT_OK_AND_ASSIGN(const QuantizedLinear linear,
                       QuantizedLinear::Create(w, TensorOf({8}, std::vector<float>(8)),
                                               {ActivationMode::kA16, "reference"}));
  EXPECT_EQ(linear.bytes(), (8 * 16 + 8) * sizeof(float));
}

}  // namespace
}  // namespace assay
