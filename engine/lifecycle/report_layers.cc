// A layer's part of the report's JSON.
#include "engine/lifecycle/report_fields.h"

namespace assay {

nlohmann::json ToJson(const LayerReport& l) {
  return {{"name", l.name},
          {"scheme", l.scheme},
          {"activation", l.activation},
          {"kernel", l.kernel},
          {"n", l.n},
          {"k", l.k},
          {"bytes", l.bytes},
          {"bytes_f32", l.bytes_f32},
          {"bytes_stored", l.bytes_stored},
          {"weight_sqnr_db", l.weight_sqnr_db},
          {"output_sqnr_db", l.output_sqnr_db},
          {"kl_contribution", l.kl_contribution},
          {"fallback", l.fallback},
          {"rotates_input", l.rotates_input},
          {"low_rank", l.low_rank},
          {"key_channels", l.key_channels},
          {"int8_scores", l.int8_scores},
          {"input_absmax", l.input_absmax},
          {"input_saturation", l.input_saturation},
          {"input_outliers", l.input_outliers},
          {"why", l.why}};
}

LayerReport ReadLayer(const nlohmann::json& object, const std::string& path, absl::Status& status) {
  LayerReport l;
  ReportFields f(object, path, status);
  f.Get("name", l.name);
  f.Get("scheme", l.scheme);
  f.Get("activation", l.activation);
  f.Get("kernel", l.kernel);
  f.GetInt("n", l.n);
  f.GetInt("k", l.k);
  f.GetInt("bytes", l.bytes);
  f.GetInt("bytes_f32", l.bytes_f32);
  f.GetInt("bytes_stored", l.bytes_stored);
  f.Get("weight_sqnr_db", l.weight_sqnr_db);
  f.Get("output_sqnr_db", l.output_sqnr_db);
  f.Get("kl_contribution", l.kl_contribution);
  f.Get("fallback", l.fallback);
  f.Get("rotates_input", l.rotates_input);
  f.GetInt("low_rank", l.low_rank);
  f.Get("key_channels", l.key_channels);
  f.Get("int8_scores", l.int8_scores);
  f.Get("input_absmax", l.input_absmax);
  f.Get("input_saturation", l.input_saturation);
  f.Get("input_outliers", l.input_outliers);
  f.Get("why", l.why);
  return l;
}

}  // namespace assay
