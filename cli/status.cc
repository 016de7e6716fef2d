#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "proto/assay/v1/assay.grpc.pb.h"

namespace assay {
namespace {

nlohmann::ordered_json ToJson(const assay::v1::ListModelsResponse& response) {
  nlohmann::ordered_json models = nlohmann::ordered_json::array();
  for (const auto& m : response.models()) {
    models.push_back({{"name", m.name()},
                      {"version", m.version()},
                      {"state", m.state()},
                      {"stage", m.stage()},
                      {"label", m.label()},
                      {"traffic_share", m.traffic_share()},
                      {"reason", m.reason()},
                      {"task", m.task()},
                      {"precision", m.precision()},
                      {"fallback_fraction", m.fallback_fraction()},
                      {"bytes_f32", m.bytes_f32()},
                      {"weight_bytes", m.weight_bytes()},
                      {"kv_bytes", m.kv_bytes()},
                      {"workspace_bytes", m.workspace_bytes()},
                      {"waiting", m.waiting()},
                      {"running", m.running()},
                      {"path", m.path()},
                      {"changed", m.changed()}});
  }
  return {{"server_version", response.server_version()},
          {"hardware", response.hardware()},
          {"ready", response.ready()},
          {"draining", response.draining()},
          {"models", models}};
}

std::vector<std::string> StatusRow(const assay::v1::ModelSummary& m) {
  std::string state = m.state();
  if (!m.stage().empty()) absl::StrAppend(&state, " (", m.stage(), ")");
  std::string precision = m.precision();
  if (m.fallback_fraction() > 0) {
    absl::StrAppend(&precision, absl::StrFormat(" +%.0f%% 16 bit", 100 * m.fallback_fraction()));
  }
  const auto size = [](uint64_t bytes) { return bytes == 0 ? std::string("-") : SizeText(bytes); };
  return {m.name(),
          absl::StrCat(m.version()),
          state,
          m.label() == "canary" ? absl::StrFormat("canary %.4g%%", 100 * m.traffic_share())
          : m.label().empty()   ? "-"
                                : m.label(),
          m.task().empty() ? "-" : m.task(),
          precision.empty() ? "-" : precision,
          size(m.weight_bytes()),
          size(m.bytes_f32()),
          size(m.kv_bytes()),
          size(m.workspace_bytes()),
          absl::StrCat(m.running(), " / ", m.waiting()),
          m.reason()};
}

int RunStatus(const GlobalOptions& global, bool json) {
  const absl::StatusOr<Client> connected = Client::Connect(global);
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  assay::v1::ListModelsResponse response;
  const auto context = client.NewContext(10);
  const grpc::Status status = stub->ListModels(context.get(), {}, &response);
  if (!status.ok()) return client.Fail(status);
  if (json) {
    std::puts(
        ToJson(response).dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    return kExitOk;
  }
  const std::string state = response.draining() ? Paint("draining", Color::kYellow, stdout)
                            : response.ready()  ? Paint("ready", Color::kGreen, stdout)
                                                : Paint("not ready", Color::kRed, stdout);
  std::printf("assay-server %s at %s: %s\n%s\n\n", response.server_version().c_str(),
              global.server.c_str(), state.c_str(), response.hardware().c_str());
  if (response.models_size() == 0) {
    std::puts("no models; admit one: assay admit PATH");
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows{{"MODEL", "VERSION", "STATE", "LABEL", "TASK",
                                              "PRECISION", "WEIGHTS", "AT F32", "KV", "WORKSPACE",
                                              "RUN / WAIT", "REASON"}};
  for (const auto& model : response.models()) rows.push_back(StatusRow(model));
  std::fputs(FormatTable(rows).c_str(), stdout);
  return kExitOk;
}

}  // namespace

void AddStatus(CLI::App& app, CommandLine& line) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "status",
      "Table of models: versions, states, precision, memory, queue\n\nExamples:\n"
      "  assay status\n  assay status --json | jq '.models[].state'");
  command->add_flag("--json", *json, "As JSON");
  command->callback(
      [&line, json] { line.run = [&line, json] { return RunStatus(line.global, *json); }; });
}

}  // namespace assay
