#include "tests/server/front/certificates.h"

#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <atomic>
#include <memory>

namespace assay {
namespace {

template <typename T, void (*Free)(T*)>
struct Freed {
  void operator()(T* object) const { Free(object); }
};
using Key = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY, EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Freed<X509, X509_free>>;
using Memory = std::unique_ptr<BIO, Freed<BIO, BIO_free_all>>;

std::string Text(const Memory& memory) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &data);
  return {data, static_cast<size_t>(size)};
}
Memory From(const std::string& text) {
  return Memory(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

void Extend(X509* certificate, X509* issuer, int id, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, &context, id, value);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

TestCertificate Make(const TestCertificate* authority, const std::string& name) {
  static std::atomic<long> serial{1};
  const Key key(EVP_EC_gen("P-256"));
  const Certificate certificate(X509_new());
  X509* const x = certificate.get();
  X509_set_version(x, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(x), serial++);
  X509_gmtime_adj(X509_getm_notBefore(x), -60);
  X509_gmtime_adj(X509_getm_notAfter(x), 3600);
  X509_set_pubkey(x, key.get());
  X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  if (authority == nullptr) {
    X509_set_issuer_name(x, X509_get_subject_name(x));
    Extend(x, x, NID_basic_constraints, "critical,CA:TRUE");
    X509_sign(x, key.get(), EVP_sha256());
  } else {
    const Certificate issuer(
        PEM_read_bio_X509(From(authority->certificate).get(), nullptr, nullptr, nullptr));
    const Key signer(
        PEM_read_bio_PrivateKey(From(authority->key).get(), nullptr, nullptr, nullptr));
    X509_set_issuer_name(x, X509_get_subject_name(issuer.get()));
    Extend(x, issuer.get(), NID_subject_alt_name, "DNS:localhost,IP:127.0.0.1");
    X509_sign(x, signer.get(), EVP_sha256());
  }
  const Memory certificate_text(BIO_new(BIO_s_mem())), key_text(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509(certificate_text.get(), x);
  PEM_write_bio_PrivateKey(key_text.get(), key.get(), nullptr, nullptr, 0, nullptr, nullptr);
  return {Text(certificate_text), Text(key_text)};
}

}  // namespace

TestCertificate MakeAuthority(const std::string& name) { return Make(nullptr, name); }
TestCertificate MakeCertificate(const TestCertificate& authority, const std::string& name) {
  return Make(&authority, name);
}

}  // namespace assay
