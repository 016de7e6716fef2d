// Certificates for tests: made on the spot, valid for an hour, for localhost and 127.0.0.1.
#pragma once
#include <string>

namespace assay {

struct TestCertificate {
  std::string certificate, key;  // PEM
};

// Signed by itself.
TestCertificate MakeAuthority(const std::string& name);
TestCertificate MakeCertificate(const TestCertificate& authority, const std::string& name);

}  // namespace assay
