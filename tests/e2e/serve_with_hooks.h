// assay-server as in server/main.cc, with hooks that only tests have.
#pragma once
#include "engine/lifecycle/admission_stages.h"

namespace assay {

// Returns the exit code, after a signal.
int ServeWithHooks(int argc, char** argv, const AdmissionHooks& hooks);

}  // namespace assay
