#include "engine/lifecycle/npy.h"

#include <cstring>

#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// A version 1.0 file as numpy.save writes it: header padded to 64 bytes, '\n' at its end.
template <typename T>
std::string Npy(const std::string& dictionary, const std::vector<T>& values) {
  std::string header = dictionary;
  while ((10 + header.size() + 1) % 64 != 0) header += ' ';
  header += '\n';
  std::string file(kNpyMagic);
  file += std::string("\x01\x00", 2);
  file += static_cast<char>(header.size() & 0xff);
  file += static_cast<char>(header.size() >> 8);
  file += header;
  file.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  return file;
}

TEST(NpyTest, ReadsRowsOfBothWidths) {
  const std::string narrow = Npy<int32_t>(
      "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 3), }", {1, 2, 3, 4, 5, 6});
  EXPECT_THAT(ReadNpyRows(narrow, "a.npy").value(),
              ElementsAre(ElementsAre(1, 2, 3), ElementsAre(4, 5, 6)));
  const std::string wide =
      Npy<int64_t>("{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }", {7, 8, 9});
  EXPECT_THAT(ReadNpyRows(wide, "a.npy").value(), ElementsAre(ElementsAre(7, 8, 9)));
  const std::string none =
      Npy<int64_t>("{'descr': '<i8', 'fortran_order': False, 'shape': (0, 4), }", {});
  EXPECT_THAT(ReadNpyRows(none, "a.npy").value(), IsEmpty());
}

TEST(NpyTest, ReadsAFileThatNumpyWrote) {
  // numpy 2.4.6: np.save("a.npy", np.array([[5, 6]], dtype=np.int32)), all of its 136 bytes.
  std::string file("\x93NUMPY\x01\x00v\x00", 10);
  std::string header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2), }";
  file += header + std::string(117 - header.size(), ' ') + "\n";
  file += std::string("\x05\x00\x00\x00\x06\x00\x00\x00", 8);
  ASSERT_EQ(file.size(), 136u);
  EXPECT_THAT(ReadNpyRows(file, "a.npy").value(), ElementsAre(ElementsAre(5, 6)));
}

TEST(NpyTest, RefusesWhatIsNoArrayOfIds) {
  const auto refusal = [](const std::string& dictionary, const std::vector<int32_t>& values) {
    return ReadNpyRows(Npy<int32_t>(dictionary, values), "bad.npy").status();
  };
  EXPECT_THAT(refusal("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", {1}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("bad.npy: not a .npy file of token "
                                                               "ids: expected int32 or int64")));
  EXPECT_THAT(refusal("{'descr': '<i4', 'fortran_order': True, 'shape': (1,), }", {1}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("fortran_order")));
  EXPECT_THAT(refusal("{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 1), }", {1}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("dimensions=3")));
  EXPECT_THAT(refusal("{'descr': '<i4', 'fortran_order': False, 'shape': (2,), }", {1}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("bytes=4 expected=8")));
  EXPECT_THAT(refusal("{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2), }", {3, -1}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("row=0 column=1 value=-1")));
  EXPECT_THAT(refusal("{'descr': '<i4', 'shape': (1,), }", {1}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("lacks")));
  EXPECT_THAT(
      refusal("{'descr': '<i4', 'fortran_order': False, 'shape': (67108864, 67108864), }", {1}),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("too large")));
}

TEST(NpyTest, RefusesEveryTruncation) {
  const std::string whole =
      Npy<int64_t>("{'descr': '<i8', 'fortran_order': False, 'shape': (2, 2), }", {1, 2, 3, 4});
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_THAT(ReadNpyRows(whole.substr(0, size), "t.npy"),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr("t.npy")))
        << size;
  }
}

}  // namespace
}  // namespace assay
