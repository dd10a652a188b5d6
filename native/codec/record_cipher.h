// AES-256-GCM as records use it.
#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "codec/chunk_id.h"

namespace virtvault {

constexpr size_t kTagBytes = 16;
constexpr size_t kContextBytes = 32;

// What encrypts the records of one pack.
struct PackKey {
  SecretKey key;
  // Store id and pack id: authenticated with every record.
  std::array<uint8_t, kContextBytes> context;
};

// Encrypts and decrypts records of one pack; sets the key up once for a batch.
// Confined to the thread that uses it. Throws E_INTERNAL where OpenSSL fails.
class RecordCipher {
 public:
  explicit RecordCipher(const PackKey& pack_key);

  // Writes ciphertext, then the tag, to `sealed`, which has plain.size() +
  // kTagBytes and may start where `plain` does. `record_number` is the nonce:
  // never twice under one key.
  void seal(uint32_t record_number, Bytes header_data, Bytes plain, MutableBytes sealed);

  // The other way. false where the tag does not fit; `plain` is then garbage
  // that must not be used.
  bool open(uint32_t record_number, Bytes header_data, Bytes sealed, MutableBytes plain);

 private:
  using Context = std::unique_ptr<EVP_CIPHER_CTX, Closer<EVP_CIPHER_CTX_free>>;

  std::array<uint8_t, kContextBytes> context_;
  Context encrypt_;
  Context decrypt_;
};

}  // namespace virtvault
