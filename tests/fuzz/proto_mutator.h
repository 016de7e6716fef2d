// Mutates a protobuf message field by field, by reflection, so that what comes out is always a
// message: a fuzzer's LLVMFuzzerCustomMutator for targets that take one. (libprotobuf-mutator is
// not in Debian 12.) One thread.
#pragma once
#include <google/protobuf/message.h>

#include <random>
#include <span>
#include <string>
#include <string_view>

namespace assay {

class ProtoMutator {
 public:
  // `words`: what a text becomes now and then.
  ProtoMutator(unsigned seed, std::span<const std::string_view> words)
      : random_(seed), words_(words) {}

  // One to four changes to fields anywhere in `message`.
  void Mutate(google::protobuf::Message& message);

  // Of serialized bytes in place, as LLVMFuzzerCustomMutator does: the new size, at most
  // `max_size`. Bytes that are no message of the kind of `prototype` are replaced by one.
  size_t MutateBytes(const google::protobuf::Message& prototype, uint8_t* data, size_t size,
                     size_t max_size);

 private:
  using Field = google::protobuf::FieldDescriptor;
  using Message = google::protobuf::Message;

  uint64_t Draw(uint64_t below) { return random_() % below; }
  void MutateField(Message& message, const Field& field);
  void MutateRepeated(Message& message, const Field& field);
  void SetSingular(Message& message, const Field& field);
  void Add(Message& message, const Field& field);
  void SetElement(Message& message, const Field& field, int index);
  int64_t Integer(int64_t old);
  double Real(double old);
  std::string Text(std::string old, const Field& field);

  std::mt19937_64 random_;
  const std::span<const std::string_view> words_;
};

}  // namespace assay
