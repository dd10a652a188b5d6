// Names of stored pieces, and the test for pieces that need no name.
#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "base/unique_handle.h"
#include "codec/sha256_lanes.h"

namespace virtvault {

constexpr size_t kIdBytes = 32;
constexpr size_t kKeyBytes = 32;

using Bytes = std::span<const uint8_t>;
using MutableBytes = std::span<uint8_t>;
using Id = std::array<uint8_t, kIdBytes>;

// A key of its own memory, wiped when it goes.
class SecretKey {
 public:
  // `bytes` has kKeyBytes.
  explicit SecretKey(Bytes bytes);
  SecretKey(const SecretKey&) = default;
  SecretKey& operator=(const SecretKey&) = default;
  ~SecretKey();

  Bytes bytes() const noexcept { return bytes_; }

 private:
  std::array<uint8_t, kKeyBytes> bytes_;
};

// Names pieces: SHA-256(kind ++ plain), or HMAC-SHA-256(key, kind ++ plain).
// The key is set up once, so one object serves a batch. Confined to the thread
// that uses it. Throws E_INTERNAL where OpenSSL fails.
class IdHasher {
 public:
  explicit IdHasher(const std::optional<SecretKey>& key);
  ~IdHasher();

  Id hash(uint8_t kind, Bytes plain);
  // Two of one length at once: about as long as one where the processor has
  // SHA instructions.
  std::array<Id, 2> hashPair(uint8_t kind, Bytes first, Bytes second);

 private:
  // HMAC's states after the padded key, for hashPair.
  std::optional<std::array<sha256_lanes::State, 2>> keyed_;
  // One of the two.
  std::unique_ptr<EVP_MD_CTX, Closer<EVP_MD_CTX_free>> digest_;
  std::unique_ptr<EVP_MAC_CTX, Closer<EVP_MAC_CTX_free>> mac_;
};

// Whether every byte is zero; stops at the first 256 bytes that are not.
bool isZero(Bytes bytes) noexcept;

}  // namespace virtvault
