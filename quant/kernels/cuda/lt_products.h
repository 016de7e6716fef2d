// Products of many rows by cuBLASLt, tuned: for every shape of a model, at admission, each of the
// algorithms that the library proposes is timed on the device, and the fastest serves. Rows are
// served by buckets: 128, 256, ... 8192 rows have an algorithm each, calls in between use the next
// larger one's, so that a row's result changes, if at all, where the bucket does.
//
// Where the library has no algorithm, a shape breaks its rules, or it is not there at all, there is
// no LtProduct, and callers use the project's own kernels.
//
// Thread-safe. Tune waits for the device and allocates: at admission, not while a stream of the
// calling thread is captured. Run may be captured.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/cuda/cuda_device.h"
#include "base/mutex.h"
#include "quant/kernels/cuda/lt_choices.h"

namespace assay {

// One shape.
class LtProduct {
 public:
  static constexpr int kFewestRows = 128, kMostRows = 8192;  // of the first and the last bucket

  // `of_bucket`: of 128 rows, 256, ..., at least one.
  LtProduct(const CublasLt& library, const LtShape& shape, std::vector<LtAlgorithm> of_bucket)
      : library_(library), shape_(shape), of_bucket_(std::move(of_bucket)) {}
  // Of one call; more are several calls.
  int most_rows() const { return kFewestRows << (of_bucket_.size() - 1); }
  // What calls of up to so many rows need at LtCall::workspace. It belongs to whoever owns the
  // stream: calls in several streams must not share it.
  size_t workspace_bytes(int rows) const;
  // REQUIRES: 1 <= rows <= most_rows(). Unimplemented: the library does not take so many rows
  // (said in the log, once), and nothing is in the stream; Internal: it failed.
  absl::Status Run(int rows, const LtCall& call) const;

 private:
  size_t BucketOf(int rows) const;
  absl::Status Refuses(int rows) const;

  const CublasLt& library_;
  const LtShape shape_;
  const std::vector<LtAlgorithm> of_bucket_;
  mutable Mutex mu_;
  mutable std::map<int, absl::Status> refuses_ ABSL_GUARDED_BY(mu_);  // by rows, once asked
};

// Milliseconds that `run` takes, which is called as often as that needs. Errors that are not sticky
// leave the algorithm out.
using LtTimer =
    std::function<absl::StatusOr<double>(const LtAlgorithm&, const std::function<absl::Status()>&)>;

struct LtOptions {
  std::string cache_directory;  // of LtChoices, which exists; empty: none
  LtTimer timer;                // empty: events on the device, the median of three runs
  // Of results while algorithms are timed: shapes with more have fewer buckets, at least one.
  size_t most_result_bytes = size_t{512} << 20;
};

class LtProducts {
 public:
  // With the library at `path` (CublasLt::Load). nullptr: it is not there, or cannot be used, which
  // the log says: own kernels serve. Otherwise as Create.
  static absl::StatusOr<std::unique_ptr<LtProducts>> Open(CudaDevice& device,
                                                          const std::string& path,
                                                          LtOptions options);
  // `device` outlives it. Status codes of the device's.
  static absl::StatusOr<std::unique_ptr<LtProducts>> Create(CudaDevice& device,
                                                            std::unique_ptr<const CublasLt> library,
                                                            LtOptions options);
  ~LtProducts();

  // The product of a shape, which lives as long as this. nullptr: the project's own kernels serve
  // it; the log says why (out of memory: the next Tune tries again). Takes, while it runs, device
  // memory for a weight, x and y of its largest bucket. Internal: an error that ends the use of the
  // device.
  absl::StatusOr<const LtProduct*> Tune(const LtShape& shape);

 private:
  struct Operands;
  LtProducts(CudaDevice& device, std::unique_ptr<const CublasLt> library, LtOptions options);
  absl::StatusOr<std::unique_ptr<const LtProduct>> Find(const LtShape& shape)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Of one bucket, from the cache or by timing. Unimplemented: none works.
  absl::StatusOr<LtAlgorithm> Choose(const LtShape& shape, int rows, Operands& operands)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<LtAlgorithm> Fastest(const LtShape& shape, int rows, Operands& operands);
  absl::StatusOr<double> Time(const std::function<absl::Status()>& run);
  absl::Status Flushed();  // nothing of the operands is in the second-level cache

  CudaDevice& device_;
  const std::unique_ptr<const CublasLt> library_;
  const LtOptions options_;
  GpuStream stream_ = nullptr;
  GpuEvent begin_ = nullptr, end_ = nullptr;
  GpuBuffer flush_;
  Mutex mu_;
  LtChoices choices_ ABSL_GUARDED_BY(mu_);
  bool changed_ ABSL_GUARDED_BY(mu_) = false;
  std::map<LtShape, std::unique_ptr<const LtProduct>> products_ ABSL_GUARDED_BY(mu_);
};

}  // namespace assay
