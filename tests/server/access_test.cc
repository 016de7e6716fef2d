#include "server/access.h"

#include <gmock/gmock.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "server/status_convert.h"
#include "tests/server/fake_serving.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

constexpr char kInfer[] = "wool-kettle-17", kObserve[] = "lamp-river-4", kAdmin[] = "stone-oboe-90";

std::string File() {
  return absl::StrCat("# who\nclient infer ", Sha256Hex(kInfer), "\n\nprobe  observe\t",
                      Sha256Hex(kObserve), " # Prometheus\nops admin ", Sha256Hex(kAdmin), "\n");
}

// ---- the file

TEST(TokenTableTest, ReadsNamesRolesAndHashes) {
  ASSERT_OK_AND_ASSIGN(const TokenTable table, TokenTable::Parse(File(), "tokens"));
  ASSERT_EQ(table.entries().size(), 3u);
  const TokenTable::Entry* const client = table.Find(kInfer);
  ASSERT_NE(client, nullptr);
  EXPECT_EQ(client->name, "client");
  EXPECT_TRUE(client->Has(Role::kInfer));
  EXPECT_FALSE(client->Has(Role::kObserve));
  EXPECT_FALSE(client->Has(Role::kAdmin));
  const TokenTable::Entry* const ops = table.Find(kAdmin);
  ASSERT_NE(ops, nullptr);
  EXPECT_TRUE(ops->Has(Role::kInfer) && ops->Has(Role::kObserve) && ops->Has(Role::kAdmin));
  EXPECT_EQ(table.Find(kObserve)->name, "probe");
}

TEST(TokenTableTest, KnowsNothingElse) {
  ASSERT_OK_AND_ASSIGN(const TokenTable table, TokenTable::Parse(File(), "tokens"));
  for (const std::string& token :
       {std::string(), std::string("wool-kettle-1"), std::string("wool-kettle-178"),
        std::string("client"), Sha256Hex(kInfer), std::string(5000, 'x')})
    EXPECT_EQ(table.Find(token), nullptr) << token.substr(0, 20);
  EXPECT_EQ(TokenTable().Find(kInfer), nullptr);
}

TEST(TokenTableTest, ABadLineIsNamedAndNotShown) {
  const std::string hash = Sha256Hex("t");
  const std::pair<std::string, const char*> bad[] = {
      {"one infer", "expected a name, roles and SHA-256"},
      {absl::StrCat("one infer ", hash, " more"), "expected a name, roles and SHA-256"},
      {absl::StrCat("one root ", hash), "infer, observe, admin"},
      {absl::StrCat("one infer,, ", hash), "infer, observe, admin"},
      {absl::StrCat("one/two infer ", hash), "a name of letters"},
      {absl::StrCat("one infer ", hash.substr(1)), "64 hexadecimal digits"},
      {absl::StrCat("one infer ", hash.substr(1), "g"), "64 hexadecimal digits"},
      {absl::StrCat("one infer ", Sha256Hex("")), "of nothing"},
      {absl::StrCat("client infer ", hash), "a name twice"},
      {absl::StrCat("one infer ", Sha256Hex(kInfer)), "a token twice"},
      {"one infer secret-token-in-clear", "64 hexadecimal digits"},
  };
  for (const auto& [line, why] : bad) {
    EXPECT_THAT(TokenTable::Parse(absl::StrCat(File(), line, "\n"), "/etc/tokens").status(),
                StatusIs(StatusCode::kInvalidArgument,
                         AllOf(HasSubstr("auth.tokens: /etc/tokens:6: "), HasSubstr(why),
                               Not(HasSubstr("secret-token-in-clear")))))
        << line;
  }
}

TEST(TokenTableTest, AFileThatIsNotThereIsNamed) {
  EXPECT_THAT(TokenTable::Read("/nowhere/tokens").status(),
              StatusIs(StatusCode::kNotFound, HasSubstr("auth.tokens: /nowhere/tokens")));
  ASSERT_OK_AND_ASSIGN(const TokenTable none, TokenTable::Read(""));
  EXPECT_TRUE(none.entries().empty());
}

// ---- every RPC

class AccessTest : public testing::Test {
 protected:
  AccessTest()
      : path_(folder_.Write("tokens", File())),
        serving_(ServerConfig{.admin = AdminAccess::kOn, .auth = {.tokens = path_}}) {}

  // Calls a method, of whatever kind, with an empty request.
  static grpc::Status Call(FakeServing& serving, const std::string& method,
                           const std::string& authorization) {
    grpc::GenericStub stub(serving.channel());
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareCall(&context, method, &queue);
    const auto wait = [&queue] {
      void* tag = nullptr;
      bool ok = false;
      queue.Next(&tag, &ok);
      return ok;
    };
    call->StartCall(nullptr);
    if (wait()) {
      call->WriteLast(grpc::ByteBuffer(&kNothing, 1), {}, nullptr);
      wait();
    }
    grpc::ByteBuffer answer;
    do {
      call->Read(&answer, nullptr);
    } while (wait());
    grpc::Status status;
    call->Finish(&status, nullptr);
    wait();
    return status;
  }
  grpc::Status CallWith(const std::string& method, const std::string& token) {
    return Call(serving_, method, absl::StrCat("Bearer ", token));
  }

  static std::vector<std::string> AllMethods() {
    std::vector<std::string> methods;
    for (const char* name : {"assay.v1.AssayService", "inference.GRPCInferenceService"}) {
      const auto* const service =
          google::protobuf::DescriptorPool::generated_pool()->FindServiceByName(name);
      for (int i = 0; service != nullptr && i < service->method_count(); ++i)
        methods.push_back(absl::StrCat("/", name, "/", service->method(i)->name()));
    }
    return methods;
  }

  inline static const grpc::Slice kNothing = grpc::Slice("");
  const TempDir folder_;
  const std::string path_;
  FakeServing serving_;
};

// What is more than inference; a method that is added must be given a role here, too, or be
// `infer`.
const std::map<std::string, std::string>& Roles() {
  static const auto& roles =
      *new std::map<std::string, std::string>{{"Admit", "admin"},
                                              {"SetCanaryShare", "admin"},
                                              {"Promote", "admin"},
                                              {"RollBack", "admin"},
                                              {"DropCanary", "admin"},
                                              {"RepositoryModelLoad", "admin"},
                                              {"ListModels", "observe"},
                                              {"RepositoryModelUnload", "admin"},
                                              {"GetReport", "observe"},
                                              {"ExplainPolicy", "observe"},
                                              {"GetDrift", "observe"},
                                              {"ListEvents", "observe"},
                                              {"RepositoryIndex", "observe"},
                                              {"ModelStatistics", "observe"},
                                              {"TraceSetting", "observe"},
                                              {"LogSettings", "observe"}};
  return roles;
}

TEST_F(AccessTest, NoMethodOfEitherServiceIsServedWithoutAToken) {
  const std::vector<std::string> methods = AllMethods();
  EXPECT_GE(methods.size(), 34u);
  for (const std::string& method : methods) {
    for (const char* authorization : {"", "Bearer wrong", "Bearer ",
                                      "Basic d29vbC1rZXR0bGUtMTc=", "wool-kettle-17", "Bearer"}) {
      const grpc::Status status = Call(serving_, method, authorization);
      EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAUTHENTICATED)
          << method << " with '" << authorization << "': " << status.error_message();
    }
  }
}

TEST_F(AccessTest, EachMethodAsksForItsRole) {
  for (const std::string& method : AllMethods()) {
    const auto known = Roles().find(method.substr(method.rfind('/') + 1));
    const std::string needed = known == Roles().end() ? "infer" : known->second;
    for (const auto& [token, role] :
         {std::pair(kInfer, "infer"), std::pair(kObserve, "observe"), std::pair(kAdmin, "admin")}) {
      const grpc::Status status = CallWith(method, token);
      const bool may = role == needed || std::string(role) == "admin";
      const bool refused = status.error_code() == grpc::StatusCode::PERMISSION_DENIED ||
                           status.error_code() == grpc::StatusCode::UNAUTHENTICATED;
      EXPECT_EQ(refused, !may) << method << " as " << role << ": " << status.error_message();
      if (refused) {
        EXPECT_THAT(status.error_message(),
                    AllOf(HasSubstr(absl::StrCat("role '", needed, "'")), Not(HasSubstr(token))));
      }
    }
  }
}

TEST_F(AccessTest, WithoutAFileNobodyIsAsked) {
  FakeServing open;
  for (const std::string& method : AllMethods())
    EXPECT_NE(Call(open, method, "").error_code(), grpc::StatusCode::UNAUTHENTICATED) << method;
}

TEST_F(AccessTest, TheSchemeIsReadAsHttpReadsIt) {
  const std::string method = "/inference.GRPCInferenceService/ServerLive";
  for (const char* scheme : {"Bearer ", "bearer ", "BEARER   "})
    EXPECT_TRUE(Call(serving_, method, absl::StrCat(scheme, kInfer)).ok()) << scheme;
}

TEST_F(AccessTest, RefusalsAreCountedByWhy) {
  Call(serving_, "/inference.GRPCInferenceService/ServerLive", "");
  CallWith("/inference.GRPCInferenceService/ServerLive", "wrong");
  CallWith("/inference.GRPCInferenceService/ServerLive", kObserve);
  const std::string metrics = serving_.metrics().Scrape();
  for (const char* reason : {"no_token", "unknown_token", "role"})
    EXPECT_THAT(metrics,
                HasSubstr(absl::StrCat("assay_auth_refused_total{reason=\"", reason, "\"} 1")));
  EXPECT_THAT(metrics, HasSubstr("assay_auth_refused_total{reason=\"port\"} 0"));
  EXPECT_THAT(metrics, Not(HasSubstr("lamp-river")));
}

TEST_F(AccessTest, AnAdmissionNamesFilesBelowTheRootsOnly) {
  const std::string inside = folder_.Write("model.gguf", "x");
  FakeServing serving({.model_roots = {folder_.path()}, .admin = AdminAccess::kOn});
  const auto stub = assay::v1::AssayService::NewStub(serving.channel());
  const auto admit = [&](const assay::v1::AdmitRequest& request) {
    grpc::ClientContext context;
    const auto stream = stub->Admit(&context, request);
    assay::v1::AdmitProgress progress;
    while (stream->Read(&progress)) {
    }
    return FromGrpc(stream->Finish());
  };
  assay::v1::AdmitRequest request;
  request.set_name("new");
  request.set_path(inside);
  EXPECT_OK(admit(request));
  assay::v1::AdmitRequest path = request, calibration = request, recipe = request;
  path.set_path("/etc/passwd");
  calibration.set_calibration("/etc/passwd");
  recipe.set_recipe("/etc/passwd");
  for (const assay::v1::AdmitRequest& bad : {path, calibration, recipe}) {
    EXPECT_THAT(admit(bad), StatusIs(StatusCode::kPermissionDenied, HasSubstr("model_roots")))
        << bad.ShortDebugString();
  }
}

// ---- files that change, ports

TEST(AccessControlTest, ARenewedFileTakesEffectAndABadOneDoesNot) {
  const TempDir folder;
  const std::string path = folder.Write("tokens", File());
  Metrics metrics("test", "cpu");
  ASSERT_OK_AND_ASSIGN(TokenTable table, TokenTable::Read(path));
  AccessControl access({.tokens_path = path}, table, metrics);
  EXPECT_OK(access.Check(absl::StrCat("Bearer ", kInfer), Role::kInfer));
  ASSERT_OK_AND_ASSIGN(const bool same, access.Reload());
  EXPECT_FALSE(same);

  folder.Write("tokens", "nonsense\n");
  EXPECT_THAT(access.Reload().status(), StatusIs(StatusCode::kInvalidArgument, HasSubstr(":1:")));
  EXPECT_OK(access.Check(absl::StrCat("Bearer ", kInfer), Role::kInfer));

  folder.Write("tokens", absl::StrCat("new infer ", Sha256Hex("other"), "\n"));
  ASSERT_OK_AND_ASSIGN(const bool changed, access.Reload());
  EXPECT_TRUE(changed);
  EXPECT_OK(access.Check("Bearer other", Role::kInfer));
  EXPECT_THAT(access.Check(absl::StrCat("Bearer ", kInfer), Role::kInfer),
              StatusIs(StatusCode::kUnauthenticated, HasSubstr("not known")));

  folder.Write("tokens", "# nobody\n");  // all are taken back: that is no mistake
  ASSERT_OK_AND_ASSIGN(const bool emptied, access.Reload());
  EXPECT_TRUE(emptied);
  EXPECT_THAT(access.Check("Bearer other", Role::kInfer),
              StatusIs(StatusCode::kUnauthenticated, HasSubstr("not known")));
}

}  // namespace
}  // namespace assay
