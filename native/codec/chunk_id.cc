#include "codec/chunk_id.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/params.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace virtvault {
namespace {

[[noreturn]] void throwOpenSsl(const char* what) {
  ERR_clear_error();
  throw NativeError("E_INTERNAL", std::string("OpenSSL: ") + what + " failed");
}

// Fetched once for the process and never freed: a fetch per call costs more
// than hashing a small piece, and at exit OpenSSL frees its own first.
const EVP_MD* sha256() {
  static const EVP_MD* const algorithm = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  if (algorithm == nullptr) throwOpenSsl("EVP_MD_fetch");
  return algorithm;
}

EVP_MAC* hmac() {
  static EVP_MAC* const algorithm = EVP_MAC_fetch(nullptr, "HMAC", nullptr);
  if (algorithm == nullptr) throwOpenSsl("EVP_MAC_fetch");
  return algorithm;
}

constexpr size_t kHmacBlock = 64;

sha256_lanes::State afterPaddedKey(const SecretKey& key, uint8_t pad) {
  std::array<uint8_t, kHmacBlock> block;
  block.fill(pad);
  for (size_t i = 0; i < kKeyBytes; i++) block[i] ^= key.bytes()[i];
  const auto state = sha256_lanes::afterBlock(sha256_lanes::initialState(), block);
  OPENSSL_cleanse(block.data(), block.size());
  return state;
}

}  // namespace

SecretKey::SecretKey(Bytes bytes) {
  if (bytes.size() != kKeyBytes) throw NativeError("E_INTERNAL", "a key must have 32 bytes");
  std::copy(bytes.begin(), bytes.end(), bytes_.begin());
}

SecretKey::~SecretKey() { OPENSSL_cleanse(bytes_.data(), bytes_.size()); }

IdHasher::IdHasher(const std::optional<SecretKey>& key) {
  if (!key) {
    digest_.reset(EVP_MD_CTX_new());
    if (!digest_) throwOpenSsl("EVP_MD_CTX_new");
    return;
  }
  mac_.reset(EVP_MAC_CTX_new(hmac()));
  if (!mac_) throwOpenSsl("EVP_MAC_CTX_new");
  char name[] = "SHA256";
  const OSSL_PARAM parameters[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, name, 0),
                                   OSSL_PARAM_construct_end()};
  if (EVP_MAC_init(mac_.get(), key->bytes().data(), kKeyBytes, parameters) != 1) throwOpenSsl("EVP_MAC_init");
  if (sha256_lanes::isAvailable()) keyed_ = {afterPaddedKey(*key, 0x36), afterPaddedKey(*key, 0x5c)};
}

IdHasher::~IdHasher() {
  if (keyed_) OPENSSL_cleanse(keyed_->data(), sizeof *keyed_);
}

Id IdHasher::hash(uint8_t kind, Bytes plain) {
  Id id;
  if (digest_) {
    unsigned int length = 0;
    if (EVP_DigestInit_ex2(digest_.get(), sha256(), nullptr) != 1 || EVP_DigestUpdate(digest_.get(), &kind, 1) != 1 ||
        EVP_DigestUpdate(digest_.get(), plain.data(), plain.size()) != 1 ||
        EVP_DigestFinal_ex(digest_.get(), id.data(), &length) != 1 || length != kIdBytes) {
      throwOpenSsl("SHA-256");
    }
    return id;
  }
  size_t length = 0;
  // Without a key, init starts over with the one that is set up.
  if (EVP_MAC_init(mac_.get(), nullptr, 0, nullptr) != 1 || EVP_MAC_update(mac_.get(), &kind, 1) != 1 ||
      EVP_MAC_update(mac_.get(), plain.data(), plain.size()) != 1 ||
      EVP_MAC_final(mac_.get(), id.data(), &length, id.size()) != 1 || length != kIdBytes) {
    throwOpenSsl("HMAC-SHA-256");
  }
  return id;
}

size_t IdHasher::groupSize() noexcept {
  // A keyed hash ends with a short message of its own, which only the lanes offer.
  if (!sha256_lanes::isAvailable()) return 1;
  return sha256_wide::isAvailable() ? sha256_wide::kLanes : sha256_lanes::kLanes;
}

void IdHasher::hashGroup(uint8_t kind, std::span<const Bytes> pieces, std::span<Id> ids) {
  const auto inner = keyed_ ? (*keyed_)[0] : sha256_lanes::initialState();
  const uint64_t before = keyed_ ? kHmacBlock : 0;
  const auto settle = [&](size_t i, const Id& digest) {
    ids[i] = keyed_ ? sha256_lanes::finishShort((*keyed_)[1], kHmacBlock, digest) : digest;
  };
  const size_t group = groupSize();
  size_t i = 0;
  if (group == sha256_wide::kLanes && pieces.size() >= sha256_wide::kWorthwhile) {
    std::array<const uint8_t*, sha256_wide::kLanes> messages;
    for (size_t lane = 0; lane < messages.size(); lane++) messages[lane] = pieces[std::min(lane, pieces.size() - 1)].data();
    const auto digests = sha256_wide::finish(inner, before, kind, messages, pieces[0].size());
    for (; i < pieces.size(); i++) settle(i, digests[i]);
  }
  for (; group > 1 && i + 1 < pieces.size(); i += 2) {
    const std::array<const uint8_t*, 2> messages = {pieces[i].data(), pieces[i + 1].data()};
    const auto digests = sha256_lanes::finish(inner, before, kind, messages, pieces[i].size());
    settle(i, digests[0]);
    settle(i + 1, digests[1]);
  }
  for (; i < pieces.size(); i++) ids[i] = hash(kind, pieces[i]);
}

void IdQueue::add(size_t number, Bytes plain) {
  if (waiting_ > 0 && pieces_[0].size() != plain.size()) flush();
  numbers_[waiting_] = number;
  pieces_[waiting_] = plain;
  if (++waiting_ == IdHasher::groupSize()) flush();
}

void IdQueue::flush() {
  std::array<Id, kMostAtOnce> ids;
  const size_t count = std::exchange(waiting_, 0);
  if (count == 0) return;
  hasher_.hashGroup(kind_, std::span(pieces_).first(count), ids);
  for (size_t i = 0; i < count; i++) named_(numbers_[i], ids[i]);
}

bool isZero(Bytes bytes) noexcept {
  constexpr size_t kBlock = 256;
  const uint8_t* at = bytes.data();
  size_t left = bytes.size();
  for (; left >= kBlock; at += kBlock, left -= kBlock) {
    // Without a branch inside, so that the compiler makes vectors of it.
    std::array<uint64_t, kBlock / 8> words;
    std::memcpy(words.data(), at, kBlock);
    uint64_t any = 0;
    for (const uint64_t word : words) any |= word;
    if (any != 0) return false;
  }
  return std::all_of(at, at + left, [](uint8_t byte) { return byte == 0; });
}

}  // namespace virtvault
