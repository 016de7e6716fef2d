// The rows of AllFamilies(), one function per family.
#pragma once
#include "engine/model/model.h"

namespace assay {

ModelFamily LlamaFamily();  // llama.cc
ModelFamily BertFamily();   // bert.cc

}  // namespace assay
