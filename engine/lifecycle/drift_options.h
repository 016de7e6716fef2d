// How live traffic is compared with the reference (drift_monitor.h). Plain values.
#pragma once
#include <cstddef>

namespace assay {

struct SamplerOptions {
  double rate = 0.01;          // of the requests, [0, 1]; 0 = none
  double floor_per_hour = 60;  // at least, when so many come
  size_t ring = 64;            // requests that wait; more are dropped
  size_t max_tokens = 2048;    // longer ones are left out
};

struct DriftOptions {
  SamplerOptions sampler;           // rate 0: nothing is looked at
  double cpu_share = 0.01;          // of all cores
  double tokens_per_second = 1000;  // that the reference computes, on average
  int max_positions = 64;           // compared per request
  double tolerance = 2;             // of the certificate's bound
  double alpha = 0.01;              // chance of calling a good version VIOLATED for its mean
  double change_requests = 10000;   // between false alarms of the change detector
  // Prompts of requests that were looked at, the latest, for the calibration of what replaces the
  // version; 0 = none are kept.
  int calibration_requests = 256;
};

}  // namespace assay
