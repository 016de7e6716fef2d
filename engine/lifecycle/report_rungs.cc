// Rungs of a ladder as JSON: in reports, and in the cache (ladders.json).
#include "engine/lifecycle/report_fields.h"

namespace assay {

using nlohmann::json;

json ToJson(const RungReport& rung) {
  return {{"recipe", rung.recipe},
          {"reason", rung.reason},
          {"measured", rung.measured},
          {"loss", {{"mean", rung.loss.mean}, {"low", rung.loss.low}, {"high", rung.loss.high}}},
          {"bytes_stored", rung.bytes_stored},
          {"seconds", absl::ToDoubleSeconds(rung.elapsed)}};
}

absl::StatusOr<RungReport> RungFromJson(const json& object) {
  absl::Status status;
  RungReport rung;
  ReportFields fields(object, "rung.", status);
  fields.Get("recipe", rung.recipe);
  fields.Get("reason", rung.reason);
  fields.Get("measured", rung.measured);
  fields.Get("loss", rung.loss);
  fields.GetInt("bytes_stored", rung.bytes_stored);
  fields.Get("seconds", rung.elapsed);
  RETURN_IF_ERROR(status);
  return rung;
}

}  // namespace assay
