#include "codec/record_cipher.h"

#include <openssl/err.h>

#include <algorithm>
#include <string>

#include "base/error.h"

namespace virtvault {
namespace {

[[noreturn]] void throwGcm(const char* what) {
  ERR_clear_error();
  throw NativeError("E_INTERNAL", std::string("OpenSSL: AES-256-GCM ") + what + " failed");
}

// Never freed: see sha256() in chunk_id.cc.
const EVP_CIPHER* aes256gcm() {
  static const EVP_CIPHER* const algorithm = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  if (algorithm == nullptr) throwGcm("fetch");
  return algorithm;
}

using Nonce = std::array<uint8_t, 12>;

// Four zero bytes, then the record number as 64 bits, little endian.
Nonce nonceOf(uint32_t record_number) noexcept {
  Nonce nonce{};
  for (size_t i = 0; i < 4; i++) nonce[4 + i] = static_cast<uint8_t>(record_number >> (8 * i));
  return nonce;
}

}  // namespace

RecordCipher::RecordCipher(const PackKey& pack_key)
    : context_(pack_key.context), encrypt_(EVP_CIPHER_CTX_new()), decrypt_(EVP_CIPHER_CTX_new()) {
  const uint8_t* key = pack_key.key.bytes().data();
  if (!encrypt_ || !decrypt_ || EVP_EncryptInit_ex2(encrypt_.get(), aes256gcm(), key, nullptr, nullptr) != 1 ||
      EVP_DecryptInit_ex2(decrypt_.get(), aes256gcm(), key, nullptr, nullptr) != 1) {
    throwGcm("key setup");
  }
}

void RecordCipher::seal(uint32_t record_number, Bytes header_data, Bytes plain, MutableBytes sealed) {
  if (sealed.size() != plain.size() + kTagBytes) throwGcm("room");
  EVP_CIPHER_CTX* context = encrypt_.get();
  const Nonce nonce = nonceOf(record_number);
  int length = 0;
  if (EVP_EncryptInit_ex2(context, nullptr, nullptr, nonce.data(), nullptr) != 1 ||
      EVP_EncryptUpdate(context, nullptr, &length, context_.data(), static_cast<int>(context_.size())) != 1 ||
      EVP_EncryptUpdate(context, nullptr, &length, header_data.data(), static_cast<int>(header_data.size())) != 1 ||
      EVP_EncryptUpdate(context, sealed.data(), &length, plain.data(), static_cast<int>(plain.size())) != 1 ||
      static_cast<size_t>(length) != plain.size() ||
      EVP_EncryptFinal_ex(context, sealed.data() + plain.size(), &length) != 1 ||
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_GET_TAG, kTagBytes, sealed.data() + plain.size()) != 1) {
    throwGcm("encryption");
  }
}

bool RecordCipher::open(uint32_t record_number, Bytes header_data, Bytes sealed, MutableBytes plain) {
  if (sealed.size() < kTagBytes || plain.size() != sealed.size() - kTagBytes) return false;
  EVP_CIPHER_CTX* context = decrypt_.get();
  const Nonce nonce = nonceOf(record_number);
  std::array<uint8_t, kTagBytes> tag;
  std::copy_n(sealed.data() + plain.size(), kTagBytes, tag.data());
  int length = 0;
  if (EVP_DecryptInit_ex2(context, nullptr, nullptr, nonce.data(), nullptr) != 1 ||
      EVP_DecryptUpdate(context, nullptr, &length, context_.data(), static_cast<int>(context_.size())) != 1 ||
      EVP_DecryptUpdate(context, nullptr, &length, header_data.data(), static_cast<int>(header_data.size())) != 1 ||
      EVP_DecryptUpdate(context, plain.data(), &length, sealed.data(), static_cast<int>(plain.size())) != 1 ||
      EVP_CIPHER_CTX_ctrl(context, EVP_CTRL_AEAD_SET_TAG, kTagBytes, tag.data()) != 1) {
    throwGcm("decryption");
  }
  if (EVP_DecryptFinal_ex(context, tag.data(), &length) == 1) return true;
  ERR_clear_error();
  return false;
}

}  // namespace virtvault
