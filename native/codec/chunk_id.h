// Names of stored pieces, and the test for pieces that need no name.
#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "base/unique_handle.h"
#include "codec/sha256_lanes.h"
#include "codec/sha256_wide.h"

namespace virtvault {

constexpr size_t kIdBytes = 32;
constexpr size_t kKeyBytes = 32;
constexpr size_t kMostAtOnce = sha256_wide::kLanes;

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
  // Up to kMostAtOnce pieces of one length; `ids` has a place for each.
  void hashGroup(uint8_t kind, std::span<const Bytes> pieces, std::span<Id> ids);
  // As many of one length as this processor hashes at once.
  static size_t groupSize() noexcept;

 private:
  // HMAC's states after the padded key, for hashGroup.
  std::optional<std::array<sha256_lanes::State, 2>> keyed_;
  // One of the two.
  std::unique_ptr<EVP_MD_CTX, Closer<EVP_MD_CTX_free>> digest_;
  std::unique_ptr<EVP_MAC_CTX, Closer<EVP_MAC_CTX_free>> mac_;
};

// Names pieces as they come, in groups of one length; who comes last waits for
// flush(). Calls `named` with each piece's own number, soon after it was read.
class IdQueue {
 public:
  using Named = std::function<void(size_t number, const Id& id)>;

  IdQueue(IdHasher& hasher, uint8_t kind, Named named) : hasher_(hasher), kind_(kind), named_(std::move(named)) {}

  // `plain` stays where it is until it is named.
  void add(size_t number, Bytes plain);
  void flush();

 private:
  IdHasher& hasher_;
  uint8_t kind_;
  Named named_;
  size_t waiting_ = 0;
  std::array<size_t, kMostAtOnce> numbers_;
  std::array<Bytes, kMostAtOnce> pieces_;
};

// Whether every byte is zero; stops at the first 256 bytes that are not.
bool isZero(Bytes bytes) noexcept;

}  // namespace virtvault
