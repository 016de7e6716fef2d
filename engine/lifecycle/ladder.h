// Recipes tried from cheap to accurate until one passes the gate (RecipeLadder). One attempt is one
// Admission; this decides whether another one follows. Internal to engine/lifecycle; admission
// thread only.
#pragma once
#include "engine/lifecycle/admission_stages.h"

namespace assay {

// Sets the recipe of this attempt: the ladder's rung at `a.rung`, or, at the first attempt, the one
// that an earlier admission of the same checkpoint ended with.
void TakeRung(Admission& a);
// Whether a better recipe is still to be tried: layers of this one need not fall back.
bool HasNextRung(const Admission& a);
// Whether another attempt follows one that ended with `status`. Defects of weights and whatever
// does not depend on the recipe end the climb.
bool ClimbsOn(const Admission& a, const absl::Status& status);
// The attempt after `a`, which is done with.
std::unique_ptr<Admission> NextAttempt(std::unique_ptr<Admission> a, const absl::Status& status);
// Of an admitted attempt: where the next admission of this checkpoint begins.
void RememberRung(const Admission& a);

}  // namespace assay
