// The model families, in the order in which they are asked. A new family: its folder entry and one
// line here.
#include "engine/model/families/families.h"

namespace assay {

std::span<const ModelFamily> AllFamilies() {
  static const ModelFamily families[] = {LlamaFamily(), BertFamily()};
  return families;
}

}  // namespace assay
