#include "server/front/tls_store.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "base/mapped_file.h"
#include "base/sha256.h"

namespace assay {
namespace {

// The oldest error of OpenSSL's queue, in words; empties it.
std::string Reason() {
  const unsigned long code = ERR_get_error();
  ERR_clear_error();
  const char* const words = code == 0 ? nullptr : ERR_reason_error_string(code);
  return words == nullptr ? "unknown error" : words;
}

absl::StatusOr<std::string> ReadPem(const char* what, const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok() || text->empty())
    return absl::InvalidArgumentError(absl::StrCat("cannot read ", what, "=", path));
  return text;
}

absl::Status Bad(const char* what, const std::string& path) {
  return absl::InvalidArgumentError(absl::StrCat(what, "=", path, ": ", Reason()));
}

// One protocol is spoken here. Clients that do not ask are believed to know. `ours`: the store's,
// which outlives its contexts' connections.
int ChooseProtocol(SSL*, const unsigned char** out, unsigned char* out_length,
                   const unsigned char* offered, unsigned offered_length, void* ours) {
  const auto& protocol = *static_cast<const std::string*>(ours);
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, out_length,
                            reinterpret_cast<const unsigned char*>(protocol.data()),
                            static_cast<unsigned>(protocol.size()), offered,
                            offered_length) != OPENSSL_NPN_NEGOTIATED)
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

void Configure(SSL_CTX* context, const std::string& protocol) {
  SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
  // A session that is resumed would not be asked for a certificate that is trusted now.
  SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context, 0);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_alpn_select_cb(context, ChooseProtocol, const_cast<std::string*>(&protocol));
}

absl::Time ExpiryOf(const X509* certificate) {
  std::tm tm{};
  if (certificate == nullptr || ASN1_TIME_to_tm(X509_get0_notAfter(certificate), &tm) != 1)
    return absl::InfinitePast();
  return absl::FromTM(tm, absl::UTCTimeZone());
}

// The first of the server's certificate and its chain to end.
absl::Time ExpiryOf(SSL_CTX* context) {
  absl::Time expiry = ExpiryOf(SSL_CTX_get0_certificate(context));
  STACK_OF(X509)* chain = nullptr;
  SSL_CTX_get0_chain_certs(context, &chain);
  for (int i = 0; i < sk_X509_num(chain); ++i)
    expiry = std::min(expiry, ExpiryOf(sk_X509_value(chain, i)));
  return expiry;
}

// The first to end of those whose clients are trusted.
absl::Time ClientCaExpiryOf(const SSL_CTX* context) {
  absl::Time expiry = absl::InfiniteFuture();
  const STACK_OF(X509_OBJECT)* const trusted =
      X509_STORE_get0_objects(SSL_CTX_get_cert_store(context));
  for (int i = 0; i < sk_X509_OBJECT_num(trusted); ++i) {
    const X509_OBJECT* const one = sk_X509_OBJECT_value(trusted, i);
    if (X509_OBJECT_get_type(one) == X509_LU_X509)
      expiry = std::min(expiry, ExpiryOf(X509_OBJECT_get0_X509(one)));
  }
  return expiry;
}

}  // namespace

absl::StatusOr<std::unique_ptr<TlsStore>> TlsStore::Load(TlsFiles files, const char* protocol) {
  if (files.certificate.empty() || files.key.empty())
    return absl::InvalidArgumentError("TLS needs both: tls.certificate and tls.key");
  std::unique_ptr<TlsStore> store(new TlsStore(
      std::move(files),
      absl::StrCat(std::string(1, static_cast<char>(std::strlen(protocol))), protocol)));
  ASSIGN_OR_RETURN(Loaded loaded, store->Read());
  const MutexLock lock(store->mu_);
  store->loaded_ = std::move(loaded);
  return store;
}

absl::StatusOr<TlsStore::Loaded> TlsStore::Read() const {
  Loaded loaded;
  std::string all;
  for (const auto& [what, path] :
       {std::pair("tls.certificate", &files_.certificate), std::pair("tls.key", &files_.key),
        std::pair("tls.client_ca", &files_.client_ca)}) {
    if (path->empty()) continue;
    ASSIGN_OR_RETURN(const std::string text, ReadPem(what, *path));
    absl::StrAppend(&all, text.size(), "\n", text);
  }
  loaded.hash = Sha256Hex(all);
  ERR_clear_error();
  loaded.context = std::shared_ptr<ssl_ctx_st>(SSL_CTX_new(TLS_server_method()), SSL_CTX_free);
  SSL_CTX* const context = loaded.context.get();
  if (context == nullptr) return absl::InternalError(absl::StrCat("TLS: ", Reason()));
  Configure(context, protocol_);
  if (SSL_CTX_use_certificate_chain_file(context, files_.certificate.c_str()) != 1)
    return Bad("tls.certificate", files_.certificate);
  if (SSL_CTX_use_PrivateKey_file(context, files_.key.c_str(), SSL_FILETYPE_PEM) != 1 ||
      SSL_CTX_check_private_key(context) != 1)
    return Bad("tls.key", files_.key);
  if (!files_.client_ca.empty()) {
    if (SSL_CTX_load_verify_locations(context, files_.client_ca.c_str(), nullptr) != 1)
      return Bad("tls.client_ca", files_.client_ca);
    SSL_CTX_set_client_CA_list(context, SSL_load_client_CA_file(files_.client_ca.c_str()));
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  }
  loaded.expiry = ExpiryOf(context);
  loaded.client_ca_expiry = ClientCaExpiryOf(context);
  return loaded;
}

absl::StatusOr<bool> TlsStore::Reload() {
  ASSIGN_OR_RETURN(Loaded loaded, Read());
  const MutexLock lock(mu_);
  if (loaded.hash == loaded_.hash) return false;
  loaded_ = std::move(loaded);
  return true;
}

std::shared_ptr<ssl_ctx_st> TlsStore::context() const {
  const MutexLock lock(mu_);
  return loaded_.context;
}

absl::Time TlsStore::expiry() const {
  const MutexLock lock(mu_);
  return loaded_.expiry;
}

absl::Time TlsStore::client_ca_expiry() const {
  const MutexLock lock(mu_);
  return loaded_.client_ca_expiry;
}

}  // namespace assay
