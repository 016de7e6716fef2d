#include "tests/fuzz/proto_mutator.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

// Of libFuzzer; absent where a corpus is replayed.
extern "C" __attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t* data, size_t size,
                                                         size_t max_size);

namespace assay {
namespace {

constexpr size_t kLongestText = 200;
constexpr int kMostElements = 300;  // of a repeated field; more than a request may have rows

using google::protobuf::Message;
using google::protobuf::Reflection;

// The message and all messages inside it.
void Collect(Message& message, std::vector<Message*>& out) {
  out.push_back(&message);
  const Reflection& reflection = *message.GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const auto* field : fields) {
    if (field->cpp_type() != field->CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) {
      Collect(*reflection.MutableMessage(&message, field), out);
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i)
      Collect(*reflection.MutableRepeatedMessage(&message, field, i), out);
  }
}

}  // namespace

void ProtoMutator::Mutate(Message& message) {
  for (uint64_t left = 1 + Draw(4); left > 0; --left) {
    std::vector<Message*> all;
    Collect(message, all);
    Message& chosen = *all[Draw(all.size())];
    const auto& descriptor = *chosen.GetDescriptor();
    if (descriptor.field_count() == 0) continue;
    MutateField(
        chosen,
        *descriptor.field(static_cast<int>(Draw(static_cast<uint64_t>(descriptor.field_count())))));
  }
}

void ProtoMutator::MutateField(Message& message, const Field& field) {
  if (field.is_repeated()) return MutateRepeated(message, field);
  if (Draw(6) == 0) return message.GetReflection()->ClearField(&message, &field);
  SetSingular(message, field);
}

void ProtoMutator::MutateRepeated(Message& message, const Field& field) {
  const Reflection& reflection = *message.GetReflection();
  const int size = reflection.FieldSize(message, &field);
  const auto any = [&] { return static_cast<int>(Draw(static_cast<uint64_t>(size))); };
  const uint64_t what = size == 0 ? 0 : Draw(5);
  if (what == 0 && size < kMostElements) return Add(message, field);
  if (what == 1) return reflection.RemoveLast(&message, &field);
  if (what == 2) return reflection.SwapElements(&message, &field, any(), any());
  if (size > 0) SetElement(message, field, any());
}

int64_t ProtoMutator::Integer(int64_t old) {
  constexpr int64_t kEdges[] = {0,
                                1,
                                -1,
                                2,
                                255,
                                256,
                                257,
                                std::numeric_limits<int32_t>::max(),
                                std::numeric_limits<int32_t>::min(),
                                int64_t{1} << 32,
                                std::numeric_limits<int64_t>::max(),
                                std::numeric_limits<int64_t>::min()};
  switch (Draw(4)) {
    case 0:
      return kEdges[Draw(std::size(kEdges))];
    case 1:
      return static_cast<int64_t>(Draw(64));
    case 2:
      return static_cast<int64_t>(random_());
    default:
      return static_cast<int64_t>(static_cast<uint64_t>(old) + Draw(5) - 2);
  }
}

double ProtoMutator::Real(double old) {
  using Limits = std::numeric_limits<double>;
  const double edges[] = {
      0, -0.0, 1, -1, 0.5, 1e-30, Limits::max(), Limits::infinity(), Limits::quiet_NaN(), 1e9};
  return Draw(2) == 0 ? edges[Draw(std::size(edges))]
                      : old * (static_cast<double>(Draw(400)) / 100 - 2);
}

std::string ProtoMutator::Text(std::string old, const Field& field) {
  if (!words_.empty() && Draw(2) == 0) {
    old = std::string(words_[Draw(words_.size())]);
  } else if (LLVMFuzzerMutate != nullptr && Draw(4) != 0) {
    const size_t size = old.size();
    old.resize(std::max(size, kLongestText));
    old.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(old.data()), size, old.size()));
  } else {
    old.insert(Draw(old.size() + 1), 1, static_cast<char>(random_()));
  }
  if (field.type() == Field::TYPE_STRING)  // must be UTF-8, else nothing of the message is read
    for (char& c : old) c = static_cast<char>(c & 0x7f);
  return old;
}

void ProtoMutator::SetSingular(Message& message, const Field& field) {
  const Reflection& r = *message.GetReflection();
  switch (field.cpp_type()) {
    case Field::CPPTYPE_INT32:
      return r.SetInt32(&message, &field,
                        static_cast<int32_t>(Integer(r.GetInt32(message, &field))));
    case Field::CPPTYPE_INT64:
      return r.SetInt64(&message, &field, Integer(r.GetInt64(message, &field)));
    case Field::CPPTYPE_UINT32:
      return r.SetUInt32(&message, &field,
                         static_cast<uint32_t>(Integer(r.GetUInt32(message, &field))));
    case Field::CPPTYPE_UINT64:
      return r.SetUInt64(
          &message, &field,
          static_cast<uint64_t>(Integer(static_cast<int64_t>(r.GetUInt64(message, &field)))));
    case Field::CPPTYPE_FLOAT:
      return r.SetFloat(&message, &field, static_cast<float>(Real(r.GetFloat(message, &field))));
    case Field::CPPTYPE_DOUBLE:
      return r.SetDouble(&message, &field, Real(r.GetDouble(message, &field)));
    case Field::CPPTYPE_BOOL:
      return r.SetBool(&message, &field, !r.GetBool(message, &field));
    case Field::CPPTYPE_ENUM:
      return r.SetEnumValue(&message, &field, static_cast<int>(Draw(40)));
    case Field::CPPTYPE_STRING:
      return r.SetString(&message, &field, Text(r.GetString(message, &field), field));
    case Field::CPPTYPE_MESSAGE:
      return Mutate(*r.MutableMessage(&message, &field));
  }
}

void ProtoMutator::Add(Message& message, const Field& field) {
  const Reflection& r = *message.GetReflection();
  switch (field.cpp_type()) {
    case Field::CPPTYPE_INT32:
      return r.AddInt32(&message, &field, static_cast<int32_t>(Integer(0)));
    case Field::CPPTYPE_INT64:
      return r.AddInt64(&message, &field, Integer(0));
    case Field::CPPTYPE_UINT32:
      return r.AddUInt32(&message, &field, static_cast<uint32_t>(Integer(0)));
    case Field::CPPTYPE_UINT64:
      return r.AddUInt64(&message, &field, static_cast<uint64_t>(Integer(0)));
    case Field::CPPTYPE_FLOAT:
      return r.AddFloat(&message, &field, static_cast<float>(Real(1)));
    case Field::CPPTYPE_DOUBLE:
      return r.AddDouble(&message, &field, Real(1));
    case Field::CPPTYPE_BOOL:
      return r.AddBool(&message, &field, Draw(2) == 0);
    case Field::CPPTYPE_ENUM:
      return r.AddEnumValue(&message, &field, static_cast<int>(Draw(40)));
    case Field::CPPTYPE_STRING:
      return r.AddString(&message, &field, Text("", field));
    case Field::CPPTYPE_MESSAGE:
      return Mutate(*r.AddMessage(&message, &field));
  }
}

void ProtoMutator::SetElement(Message& message, const Field& field, int index) {
  const Reflection& r = *message.GetReflection();
  if (field.cpp_type() == Field::CPPTYPE_STRING) {
    return r.SetRepeatedString(&message, &field, index,
                               Text(r.GetRepeatedString(message, &field, index), field));
  }
  if (field.cpp_type() == Field::CPPTYPE_MESSAGE)
    return Mutate(*r.MutableRepeatedMessage(&message, &field, index));
  const int last = r.FieldSize(message, &field) - 1;
  r.SwapElements(&message, &field, index, last);
  r.RemoveLast(&message, &field);
  Add(message, field);
  r.SwapElements(&message, &field, index, last);
}

size_t ProtoMutator::MutateBytes(const Message& prototype, uint8_t* data, size_t size,
                                 size_t max_size) {
  const std::unique_ptr<Message> message(prototype.New());
  if (!message->ParseFromArray(data, static_cast<int>(size))) message->Clear();
  Mutate(*message);
  const std::string bytes = message->SerializeAsString();
  if (bytes.size() > max_size) return size;
  std::copy(bytes.begin(), bytes.end(), data);
  return bytes.size();
}

}  // namespace assay
