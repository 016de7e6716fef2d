#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "engine/lifecycle/artifact.h"
#include "quant/policy/policy.h"

namespace assay {
namespace {

using nlohmann::json;

constexpr int kFormatVersion = 1;
constexpr uint64_t kMaxBytes = uint64_t{1} << 48;

absl::Status Lost(const std::string& what) {
  return absl::DataLossError("artifact manifest: " + what);
}

json ShapeToJson(const Shape& shape) {
  json dims = json::array();
  for (int i = 0; i < shape.rank; ++i) dims.push_back(shape[i]);
  return dims;
}

absl::StatusOr<Shape> ShapeFromJson(const json& dims, const std::string& where) {
  Shape shape;
  if (!dims.is_array() || dims.empty() || dims.size() > shape.dim.size()) {
    return Lost(where + ".shape expected a list of one to four numbers");
  }
  uint64_t elements = 1;
  for (const json& dim : dims) {
    const bool good = dim.is_number_unsigned() && dim.get<uint64_t>() > 0 &&
                      dim.get<uint64_t>() <= kMaxBytes / elements;
    if (!good) return Lost(where + ".shape has a dimension out of range");
    elements *= dim.get<uint64_t>();
    shape.dim[static_cast<size_t>(shape.rank++)] = dim.get<int64_t>();
  }
  return shape;
}

// The part of a slot that its hash covers: everything but the place in the file and the words.
json PlanToJson(const ArtifactSlot& slot) {
  json tensors = json::array();
  for (const ArtifactTensor& tensor : slot.tensors) {
    tensors.push_back({{"role", tensor.role},
                       {"dtype", std::string(Name(tensor.dtype))},
                       {"shape", ShapeToJson(tensor.shape)},
                       {"sha256", tensor.sha256}});
  }
  return {{"scheme", slot.plan.scheme},
          {"activation", std::string(Name(slot.plan.activation))},
          {"fallback", slot.plan.fallback},
          {"shape", ShapeToJson(slot.shape)},
          {"group", slot.group},
          {"tensors", tensors}};
}

// A value of the wanted type, or a DataLoss that names it.
template <typename T>
absl::StatusOr<T> Get(const json& object, const char* key, const std::string& where) {
  const auto it = object.find(key);
  bool good = it != object.end();
  if constexpr (std::is_same_v<T, std::string>) {
    good = good && it->is_string();
  } else if constexpr (std::is_same_v<T, bool>) {
    good = good && it->is_boolean();
  } else if constexpr (std::is_same_v<T, double>) {
    good = good && it->is_number();
  } else {
    good = good && it->is_number_unsigned() && it->template get<uint64_t>() < kMaxBytes;
  }
  if (!good) return Lost(absl::StrCat(where, ".", key, " is missing or of the wrong type"));
  return it->template get<T>();
}

absl::StatusOr<ArtifactTensor> TensorFromJson(const json& object, const std::string& where) {
  if (!object.is_object()) return Lost(where + " expected an object");
  ArtifactTensor tensor;
  ASSIGN_OR_RETURN(tensor.role, Get<std::string>(object, "role", where));
  ASSIGN_OR_RETURN(const std::string dtype, Get<std::string>(object, "dtype", where));
  const std::optional<DType> known = FindDType(dtype);
  if (!known.has_value()) return Lost(where + ".dtype is unknown: " + dtype);
  tensor.dtype = *known;
  ASSIGN_OR_RETURN(tensor.shape, ShapeFromJson(object.value("shape", json()), where));
  ASSIGN_OR_RETURN(tensor.offset, Get<uint64_t>(object, "offset", where));
  ASSIGN_OR_RETURN(tensor.bytes, Get<uint64_t>(object, "bytes", where));
  ASSIGN_OR_RETURN(tensor.sha256, Get<std::string>(object, "sha256", where));
  if (tensor.bytes != BytesOf(tensor.shape.elements(), tensor.dtype)) {
    return Lost(where + ".bytes does not follow from shape and dtype");
  }
  return tensor;
}

absl::StatusOr<ArtifactSlot> SlotFromJson(const json& object, const std::string& where) {
  if (!object.is_object()) return Lost(where + " expected an object");
  ArtifactSlot slot;
  ASSIGN_OR_RETURN(slot.plan.scheme, Get<std::string>(object, "scheme", where));
  ASSIGN_OR_RETURN(const std::string mode, Get<std::string>(object, "activation", where));
  const std::optional<ActivationMode> activation = FindActivationMode(mode);
  if (!activation.has_value()) return Lost(where + ".activation is unknown: " + mode);
  slot.plan.activation = *activation;
  ASSIGN_OR_RETURN(slot.plan.fallback, Get<bool>(object, "fallback", where));
  ASSIGN_OR_RETURN(slot.plan.why, Get<std::string>(object, "why", where));
  ASSIGN_OR_RETURN(slot.plan.kl_contribution, Get<double>(object, "kl_contribution", where));
  ASSIGN_OR_RETURN(slot.shape, ShapeFromJson(object.value("shape", json()), where));
  ASSIGN_OR_RETURN(slot.group, Get<int64_t>(object, "group", where));
  const auto tensors = object.find("tensors");
  if (tensors == object.end() || !tensors->is_array()) {
    return Lost(where + ".tensors expected a list");
  }
  for (const json& tensor : *tensors) {
    ASSIGN_OR_RETURN(slot.tensors.emplace_back(), TensorFromJson(tensor, where + ".tensors"));
  }
  return slot;
}

}  // namespace

std::string ArtifactHash(const ArtifactManifest& manifest) {
  json slots = json::object();
  for (const auto& [name, slot] : manifest.slots) slots[name] = PlanToJson(slot);
  return Sha256Hex(slots.dump());
}

json ToJson(const ArtifactManifest& manifest) {
  json slots = json::object();
  for (const auto& [name, slot] : manifest.slots) {
    json object = PlanToJson(slot);
    object["why"] = slot.plan.why;
    object["kl_contribution"] = slot.plan.kl_contribution;
    for (size_t i = 0; i < slot.tensors.size(); ++i) {
      object["tensors"][i]["offset"] = slot.tensors[i].offset;
      object["tensors"][i]["bytes"] = slot.tensors[i].bytes;
    }
    slots[name] = std::move(object);
  }
  return {{"format", "assay-artifact"},
          {"format_version", kFormatVersion},
          {"key", manifest.key},
          {"source_hash", manifest.source_hash},
          {"quantizer", manifest.quantizer},
          {"artifact_hash", manifest.artifact_hash},
          {"weights_bytes", manifest.weights_bytes},
          {"slots", slots}};
}

absl::StatusOr<ArtifactManifest> ArtifactManifestFromJson(const std::string& text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded() || !object.is_object()) return Lost("not a JSON object");
  ArtifactManifest manifest;
  ASSIGN_OR_RETURN(const std::string format, Get<std::string>(object, "format", ""));
  ASSIGN_OR_RETURN(const int version, Get<int>(object, "format_version", ""));
  if (format != "assay-artifact" || version != kFormatVersion) {
    return Lost(absl::StrCat("unknown format: ", format, " ", version));
  }
  ASSIGN_OR_RETURN(manifest.key, Get<std::string>(object, "key", ""));
  ASSIGN_OR_RETURN(manifest.source_hash, Get<std::string>(object, "source_hash", ""));
  ASSIGN_OR_RETURN(manifest.quantizer, Get<std::string>(object, "quantizer", ""));
  ASSIGN_OR_RETURN(manifest.artifact_hash, Get<std::string>(object, "artifact_hash", ""));
  ASSIGN_OR_RETURN(manifest.weights_bytes, Get<uint64_t>(object, "weights_bytes", ""));
  const auto slots = object.find("slots");
  if (slots == object.end() || !slots->is_object()) return Lost("slots expected an object");
  for (const auto& [name, slot] : slots->items()) {
    ASSIGN_OR_RETURN(ArtifactSlot stored, SlotFromJson(slot, "slots." + name));
    for (const ArtifactTensor& tensor : stored.tensors) {
      if (tensor.offset > manifest.weights_bytes ||
          tensor.bytes > manifest.weights_bytes - tensor.offset) {
        return Lost(
            absl::StrCat("tensor lies outside weights.bin: slot=", name, " role=", tensor.role));
      }
    }
    manifest.slots.emplace(name, std::move(stored));
  }
  if (ArtifactHash(manifest) != manifest.artifact_hash) {
    return Lost("artifact_hash does not match the slots");
  }
  return manifest;
}

}  // namespace assay
