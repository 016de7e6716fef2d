#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/atomic_file.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "engine/lifecycle/artifact.h"
#include "proto/assay/v1/assay.grpc.pb.h"

namespace assay {
namespace {

struct ReportOptions {
  std::string model, html;
  int64_t version = 0;
  bool json = false;
};

int RunReport(const GlobalOptions& global, const ReportOptions& options) {
  const absl::StatusOr<Client> connected = Client::Connect(global);
  if (!connected.ok()) return FailLocally(connected.status());
  const Client& client = *connected;
  const auto stub = assay::v1::AssayService::NewStub(client.channel());
  assay::v1::GetReportRequest request;
  request.set_model(options.model);
  request.set_version(options.version);
  request.set_columns(TerminalColumns());
  assay::v1::GetReportResponse response;
  const auto context = client.NewContext(10);
  const grpc::Status status = stub->GetReport(context.get(), request, &response);
  if (!status.ok()) return client.Fail(status);
  if (!options.html.empty()) {
    const auto json = nlohmann::json::parse(response.report_json(), nullptr, false);
    const absl::StatusOr<AdmissionReport> report = ReportFromJson(json);
    if (!report.ok()) return FailLocally(report.status());
    return SaveReportPage(*report, options.html);
  }
  if (!options.json) {
    std::fputs(response.report_text().c_str(), stdout);
    return kExitOk;
  }
  const auto report = nlohmann::ordered_json::parse(response.report_json(), nullptr, false);
  std::puts(report.is_discarded() ? response.report_json().c_str() : report.dump(2).c_str());
  return kExitOk;
}

}  // namespace

int SaveReportPage(const AdmissionReport& report, const std::string& path) {
  const absl::Status written = WriteFileAtomically(path, ToHtml(report));
  if (!written.ok()) return FailLocally(written);
  std::fprintf(stderr, "wrote %s\n", path.c_str());
  return kExitOk;
}

void AddReport(CLI::App& app, CommandLine& line) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* command = app.add_subcommand("report",
                                         "What the admission of a model found out\n\nExamples:\n"
                                         "  assay report smollm2\n"
                                         "  assay report smollm2 --json | jq '.verification'\n"
                                         "  assay report smollm2 --html smollm2.html");
  command->add_option("model", options->model, "Name of the model")->required();
  command->add_option("--model-version", options->version, "Version [the newest]");
  CLI::Option* json = command->add_flag("--json", options->json, "As JSON");
  command->add_option("--html", options->html, "As a page for a browser, into this file")
      ->type_name("FILE")
      ->excludes(json);
  command->callback([&line, options] {
    line.run = [&line, options] { return RunReport(line.global, *options); };
  });
}

}  // namespace assay
