// Fields of a report's JSON. Internal to report.cc.
#pragma once
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/lifecycle/report.h"

namespace assay {

// Reads fields of one object; remembers the first thing that is wrong and reads on.
class ReportFields {
 public:
  ReportFields(const nlohmann::json& object, std::string path, absl::Status& status)
      : object_(object), path_(std::move(path)), status_(status) {
    if (!object.is_object()) Fail("", "an object");
  }

  void Get(const char* key, std::string& out) {
    if (const nlohmann::json* value = Find(key)) {
      value->is_string() ? void(out = value->get<std::string>()) : Fail(key, "a text");
    }
  }
  void Get(const char* key, bool& out) {
    if (const nlohmann::json* value = Find(key)) {
      value->is_boolean() ? void(out = value->get<bool>()) : Fail(key, "true or false");
    }
  }
  void Get(const char* key, double& out) {  // JSON has no NaN: it is written as null
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return;
    if (value->is_null()) {
      out = std::numeric_limits<double>::quiet_NaN();
    } else {
      value->is_number() ? void(out = value->get<double>()) : Fail(key, "a number");
    }
  }
  template <typename Int>
  void GetInt(const char* key, Int& out) {
    if (const nlohmann::json* value = Find(key)) {
      value->is_number_integer() ? void(out = value->get<Int>()) : Fail(key, "a whole number");
    }
  }
  void Get(const char* key, std::vector<std::string>& out) {
    ForEach(key, [&](const nlohmann::json& item, const std::string&) {
      item.is_string() ? out.push_back(item.get<std::string>()) : Fail(key, "a list of texts");
    });
  }
  void Get(const char* key, std::vector<int32_t>& out) {
    ForEach(key, [&](const nlohmann::json& item, const std::string&) {
      item.is_number_integer() ? out.push_back(item.get<int32_t>())
                               : Fail(key, "a list of whole numbers");
    });
  }
  void Get(const char* key, absl::Duration& out) {
    double seconds = 0;
    Get(key, seconds);
    out = absl::Seconds(seconds);
  }
  void Get(const char* key, Estimate& out) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return;
    ReportFields fields(*value, path_ + key + ".", status_);
    fields.Get("mean", out.mean);
    fields.Get("low", out.low);
    fields.Get("high", out.high);
  }
  void Get(const char* key, WithError& out) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return;
    ReportFields fields(*value, path_ + key + ".", status_);
    fields.Get("value", out.value);
    fields.Get("error", out.error);
  }
  void Get(const char* key, std::span<double> out) {
    size_t count = 0;
    ForEach(key, [&](const nlohmann::json& item, const std::string&) {
      if (!item.is_number() || count == out.size()) return Fail(key, "as many numbers as levels");
      out[count++] = item.get<double>();
    });
    if (count != out.size()) Fail(key, "as many numbers as levels");
  }
  template <typename Function>
  void ForEach(const char* key, Function function) {
    const nlohmann::json* value = Find(key);
    if (value == nullptr) return;
    if (!value->is_array()) return Fail(key, "a list");
    for (size_t i = 0; i < value->size(); ++i) {
      function((*value)[i], absl::StrCat(path_, key, "[", i, "]."));
    }
  }
  const nlohmann::json* Find(const char* key) {
    if (!object_.is_object()) return nullptr;
    const auto it = object_.find(key);
    if (it != object_.end()) return &*it;
    Fail(key, "to be present");
    return nullptr;
  }
  std::string Path(const char* key) const { return path_ + key + "."; }
  void Fail(const char* key, const char* expected) {
    if (!status_.ok()) return;
    status_ = absl::DataLossError(absl::StrCat("report: key=", path_, key, " expected ", expected));
  }

 private:
  const nlohmann::json& object_;
  const std::string path_;
  absl::Status& status_;
};

// report_layers.cc
nlohmann::json ToJson(const LayerReport& layer);
LayerReport ReadLayer(const nlohmann::json& object, const std::string& path, absl::Status& status);

}  // namespace assay
