// `assay drift` and `assay events`: what happens while models serve.
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "proto/assay/v1/assay.grpc.pb.h"

namespace assay {
namespace {

using nlohmann::ordered_json;

std::string Dump(const ordered_json& json) {
  return json.dump(2, ' ', false, ordered_json::error_handler_t::replace);
}

ordered_json ToJson(const assay::v1::InputDrift& input) {
  const auto known = [](bool is, double value) {
    return is ? ordered_json(value) : ordered_json(nullptr);
  };
  return {{"shifted", input.shifted()},
          {"cause", input.cause()},
          {"requests", input.requests()},
          {"saturation", known(input.has_saturation(), input.saturation())},
          {"saturation_admitted", input.saturation_admitted()},
          {"saturated_layer", input.saturated_layer()},
          {"range", known(input.has_range(), input.range())},
          {"range_layer", input.range_layer()},
          {"outlier_overlap", known(input.has_outlier_overlap(), input.outlier_overlap())},
          {"length_psi", known(input.has_length_psi(), input.length_psi())},
          {"token_psi", known(input.has_token_psi(), input.token_psi())}};
}

ordered_json ToJson(const assay::v1::GetDriftResponse& response) {
  ordered_json models = ordered_json::array();
  for (const auto& m : response.models()) {
    models.push_back({{"model", m.model()},
                      {"version", m.version()},
                      {"state", m.state()},
                      {"cause", m.cause()},
                      {"statistic", m.statistic()},
                      {"score", m.score()},
                      {"low", m.low()},
                      {"high", m.high()},
                      {"limit", m.limit()},
                      {"certificate", m.certificate()},
                      {"budget", m.budget()},
                      {"top1_flip", m.top1_flip()},
                      {"logprob_difference", m.logprob_difference()},
                      {"replay_difference", m.replay_difference()},
                      {"e_value", m.e_value()},
                      {"change_evidence", m.change_evidence()},
                      {"samples", m.samples()},
                      {"mismatches", m.mismatches()},
                      {"skipped", m.skipped()},
                      {"tokens", m.tokens()},
                      {"cpu_seconds", m.cpu_seconds()},
                      {"waiting", m.waiting()},
                      {"last", m.last()},
                      {"violated_at", m.violated_at()},
                      {"error", m.error()},
                      {"input", ToJson(m.input())}});
  }
  return {{"rate", response.rate()}, {"action", response.action()}, {"models", models}};
}

std::string StateText(const std::string& state) {
  const Color color = state == "OK"     ? Color::kGreen
                      : state == "WARN" ? Color::kYellow
                                        : Color::kRed;
  return Paint(state, color, stdout);
}

std::vector<std::string> Row(const assay::v1::DriftSummary& m) {
  const bool decoder = m.statistic() == "mean_kl";
  const bool any = m.samples() > 0;
  return {m.model(),
          absl::StrCat(m.version()),
          StateText(m.state()),
          m.statistic(),
          any ? absl::StrFormat("%.5f", m.score()) : "-",
          any ? absl::StrFormat("[%.5f, %.5f]", m.low(), m.high()) : "-",
          absl::StrFormat("%.5f", m.limit()),
          any && decoder ? absl::StrFormat("%.2f %%", 100 * (1 - m.top1_flip())) : "-",
          absl::StrCat(m.samples()),
          m.last().empty() ? "never" : m.last(),
          !m.error().empty()    ? m.error()
          : m.cause().empty()   ? ""
          : m.cause() == "mean" ? "mean above the limit"
                                : "a change above the limit"};
}

// What is put into the models, against what they were admitted for.
void PrintInput(const assay::v1::GetDriftResponse& response) {
  const auto known = [](bool is, const char* format, double value) {
    return is ? absl::StrFormat(*absl::ParsedFormat<'g'>::New(format), value) : std::string("-");
  };
  std::vector<std::vector<std::string>> rows{{"INPUT", "VERSION", "STATE", "CUT OFF", "RANGE",
                                              "OUTLIERS", "LENGTH PSI", "TOKEN PSI", "WHY"}};
  for (const auto& m : response.models()) {
    const assay::v1::InputDrift& in = m.input();
    rows.push_back({m.model(), absl::StrCat(m.version()),
                    in.shifted() ? Paint("SHIFTED", Color::kYellow, stdout)
                                 : Paint("OK", Color::kGreen, stdout),
                    known(in.has_saturation(), "%.3g %%", 100 * in.saturation()),
                    known(in.has_range(), "%.3gx", in.range()),
                    known(in.has_outlier_overlap(), "%.3g %%", 100 * in.outlier_overlap()),
                    known(in.has_length_psi(), "%.2g", in.length_psi()),
                    known(in.has_token_psi(), "%.2g", in.token_psi()), in.cause()});
  }
  std::printf("\n%s", FormatTable(rows).c_str());
}

int RunDrift(const GlobalOptions& global, const std::string& model, bool json) {
  const absl::StatusOr<Client> connected = Client::Connect(global);
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  assay::v1::GetDriftRequest request;
  request.set_model(model);
  assay::v1::GetDriftResponse response;
  const auto context = client.NewContext(10);
  const grpc::Status status = stub->GetDrift(context.get(), request, &response);
  if (!status.ok()) return client.Fail(status);
  if (json) {
    std::puts(Dump(ToJson(response)).c_str());
    return kExitOk;
  }
  if (response.rate() == 0) {
    std::puts("live traffic is not looked at: drift.rate is 0");
    return kExitOk;
  }
  std::printf("%.3g %% of the requests are computed again on the reference; when VIOLATED: %s\n\n",
              100 * response.rate(), response.action().c_str());
  if (response.models_size() == 0) {
    std::puts("no model serves");
    return kExitOk;
  }
  std::vector<std::vector<std::string>> rows{{"MODEL", "VERSION", "STATE", "STATISTIC", "MEAN",
                                              "BAND", "LIMIT", "TOP-1", "REQUESTS", "LAST", "WHY"}};
  for (const auto& m : response.models()) rows.push_back(Row(m));
  std::fputs(FormatTable(rows).c_str(), stdout);
  PrintInput(response);
  return kExitOk;
}

struct EventOptions {
  std::string model;
  bool json = false, follow = false;
};

void Print(const assay::v1::EventEntry& event, bool json) {
  if (json) {
    const ordered_json line = {
        {"id", event.id()},        {"at", event.at()},           {"severity", event.severity()},
        {"model", event.model()},  {"version", event.version()}, {"kind", event.kind()},
        {"reason", event.reason()}};
    std::puts(line.dump(-1, ' ', false, ordered_json::error_handler_t::replace).c_str());
    return;
  }
  const Color color = event.severity() == "error"     ? Color::kRed
                      : event.severity() == "warning" ? Color::kYellow
                                                      : Color::kGreen;
  std::printf("%s  %-7s  %s:%lld  %-6s  %s\n", event.at().c_str(),
              Paint(event.severity(), color, stdout).c_str(), event.model().c_str(),
              static_cast<long long>(event.version()), event.kind().c_str(),
              event.reason().c_str());
}

int RunEvents(const GlobalOptions& global, const EventOptions& options) {
  const absl::StatusOr<Client> connected = Client::Connect(global);
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  assay::v1::ListEventsRequest request;
  request.set_model(options.model);
  while (true) {
    assay::v1::ListEventsResponse response;
    const auto context = client.NewContext(10);
    const grpc::Status status = stub->ListEvents(context.get(), request, &response);
    if (!status.ok()) return client.Fail(status);
    for (const auto& event : response.events()) {
      Print(event, options.json);
      request.set_since_id(event.id());
    }
    if (!options.follow) return kExitOk;
    std::fflush(stdout);
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

}  // namespace

void AddDrift(CLI::App& app, CommandLine& line) {
  auto model = std::make_shared<std::string>();
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand(
      "drift",
      "Whether models still agree with their reference on live traffic\n\nExamples:\n"
      "  assay drift\n  assay drift smollm2 --json");
  command->add_option("model", *model, "One model [all]");
  command->add_flag("--json", *json, "As JSON");
  command->callback([&line, model, json] {
    line.run = [&line, model, json] { return RunDrift(line.global, *model, *json); };
  });
}

void AddEvents(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<EventOptions>();
  CLI::App* command =
      app.add_subcommand("events",
                         "What happened to the models lately: states, drift, actions\n\nExamples:\n"
                         "  assay events\n  assay events --follow\n  assay events smollm2 --json");
  command->add_option("model", options->model, "One model [all]");
  command->add_flag("--json", options->json, "As JSON, one event a line");
  command->add_flag("--follow", options->follow, "Go on until interrupted");
  command->callback([&line, options] {
    line.run = [&line, options] { return RunEvents(line.global, *options); };
  });
}

}  // namespace assay
