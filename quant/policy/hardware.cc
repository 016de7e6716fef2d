#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "base/cpu_info.h"
#include "quant/policy/policy.h"

namespace assay {
namespace {

using nlohmann::json;

absl::Status Bad(const std::string& key, const char* expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("hardware description: key=", key, " expected ", expected));
}

// Reads the known keys of one object; everything else is an error that names the key.
class Fields {
 public:
  Fields(const json& object, std::string path) : object_(object), path_(std::move(path)) {}

  absl::Status Text(const char* key, std::string& out) {
    known_.push_back(key);
    const auto it = object_.find(key);
    if (it == object_.end() || !it->is_string()) return Bad(path_ + key, "a text");
    out = it->get<std::string>();
    return absl::OkStatus();
  }
  template <typename T>
  absl::Status Count(const char* key, T& out) {
    known_.push_back(key);
    const auto it = object_.find(key);
    if (it == object_.end() || !it->is_number_unsigned()) return Bad(path_ + key, "a whole number");
    const uint64_t value = it->get<uint64_t>();
    if (value > static_cast<uint64_t>(std::numeric_limits<T>::max())) {
      return Bad(path_ + key, "a smaller number");
    }
    out = static_cast<T>(value);
    return absl::OkStatus();
  }
  absl::Status Finish(std::initializer_list<const char*> others = {}) {
    known_.insert(known_.end(), others.begin(), others.end());
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), key) == known_.end()) {
        return Bad(path_ + key, "no such key");
      }
    }
    return absl::OkStatus();
  }

 private:
  const json& object_;
  const std::string path_;
  std::vector<std::string> known_;
};

absl::Status ReadCpu(const json& root, HardwareInfo& hardware) {
  const auto cpu = root.find("cpu");
  if (cpu == root.end() || !cpu->is_object()) return Bad("cpu", "an object");
  Fields fields(*cpu, "cpu.");
  RETURN_IF_ERROR(fields.Text("model", hardware.cpu_model));
  RETURN_IF_ERROR(fields.Text("isa", hardware.cpu_isa));
  RETURN_IF_ERROR(fields.Count("cores", hardware.cores));
  RETURN_IF_ERROR(fields.Count("memory_bytes", hardware.memory_bytes));
  return fields.Finish();
}

absl::Status ReadGpus(const json& root, HardwareInfo& hardware) {
  const auto gpus = root.find("gpus");
  if (gpus == root.end()) return absl::OkStatus();
  if (!gpus->is_array()) return Bad("gpus", "a list");
  for (const json& entry : *gpus) {
    const std::string path = absl::StrCat("gpus[", hardware.gpus.size(), "].");
    if (!entry.is_object()) return Bad(path, "an object");
    GpuInfo gpu;
    Fields fields(entry, path);
    RETURN_IF_ERROR(fields.Text("name", gpu.name));
    RETURN_IF_ERROR(fields.Count("compute_capability", gpu.compute_capability));
    RETURN_IF_ERROR(fields.Count("memory_bytes", gpu.memory_bytes));
    RETURN_IF_ERROR(fields.Finish());
    hardware.gpus.push_back(std::move(gpu));
  }
  return absl::OkStatus();
}

}  // namespace

HardwareInfo ProbeHardware() {
  const CpuInfo& cpu = HostCpu();
  HardwareInfo hardware;
  hardware.cpu_model = cpu.model;
  hardware.cpu_isa = cpu.isa();
  hardware.cores = cpu.cores;
  hardware.memory_bytes = cpu.memory_bytes;
  return hardware;
}

absl::StatusOr<HardwareInfo> HardwareFromJson(std::string_view text) {
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded() || !root.is_object()) {
    return absl::InvalidArgumentError("hardware description: expected a JSON object");
  }
  HardwareInfo hardware;
  RETURN_IF_ERROR(ReadCpu(root, hardware));
  RETURN_IF_ERROR(ReadGpus(root, hardware));
  RETURN_IF_ERROR(Fields(root, "").Finish({"cpu", "gpus", "comment"}));
  return hardware;
}

json ToJson(const HardwareInfo& hardware) {
  json gpus = json::array();
  for (const GpuInfo& gpu : hardware.gpus) {
    gpus.push_back({{"name", gpu.name},
                    {"compute_capability", gpu.compute_capability},
                    {"memory_bytes", gpu.memory_bytes}});
  }
  return {{"cpu",
           {{"model", hardware.cpu_model},
            {"isa", hardware.cpu_isa},
            {"cores", hardware.cores},
            {"memory_bytes", hardware.memory_bytes}}},
          {"gpus", gpus}};
}

}  // namespace assay
