// A server in this process for fuzzing: its services and engines as they serve, over models without
// weights (tests/support/fake_model.h) and a tokenizer of bytes. Models "text", "embed" and
// "classify". Paths in requests are confined to a folder that is not there.
#pragma once
#include "tests/server/fake_serving.h"

namespace assay {

class SmallServing {
 public:
  SmallServing();

  FakeServing& fakes() { return serving_; }
  ServiceContext& context() { return serving_.context(); }

 private:
  void Serve(const std::string& name, ModelTask task);

  ThreadPool pool_{{.num_threads = 1}};
  FakeServing serving_;
};

// One for all inputs; it is never destroyed.
SmallServing& TheServing();

}  // namespace assay
