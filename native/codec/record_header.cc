#include "codec/record_header.h"

#include <algorithm>

#include "codec/crc32c.h"
#include "codec/record_cipher.h"

namespace virtvault {
namespace {

constexpr std::array<uint8_t, 4> kMagic = {'V', 'V', 'R', '1'};
constexpr size_t kCrcAt = 20;
constexpr size_t kIdAt = 24;
constexpr size_t kReservedAt = 56;

void put(uint8_t* at, size_t width, uint32_t value) noexcept {
  for (size_t i = 0; i < width; i++) at[i] = static_cast<uint8_t>(value >> (8 * i));
}

uint32_t get(const uint8_t* at, size_t width) noexcept {
  uint32_t value = 0;
  for (size_t i = 0; i < width; i++) value |= uint32_t{at[i]} << (8 * i);
  return value;
}

}  // namespace

size_t RecordHeader::tagBytes() const noexcept { return isEncrypted() ? kTagBytes : 0; }

void encodeHeader(const RecordHeader& header, MutableBytes record) noexcept {
  uint8_t* at = record.data();
  std::copy(kMagic.begin(), kMagic.end(), at);
  at[4] = header.kind;
  at[5] = header.flags;
  put(at + 6, 2, kHeaderBytes);
  put(at + 8, 4, header.number);
  put(at + 12, 4, header.plain_length);
  put(at + 16, 4, header.stored_length);
  put(at + kCrcAt, 4, header.crc);
  std::copy(header.id.begin(), header.id.end(), at + kIdAt);
  std::fill_n(at + kReservedAt, kHeaderBytes - kReservedAt, uint8_t{0});
}

std::optional<RecordHeader> decodeHeader(Bytes bytes) noexcept {
  if (bytes.size() < kHeaderBytes) return std::nullopt;
  const uint8_t* at = bytes.data();
  if (!std::equal(kMagic.begin(), kMagic.end(), at)) return std::nullopt;
  if (get(at + 6, 2) != kHeaderBytes) return std::nullopt;
  if (!isZero(bytes.subspan(kReservedAt, kHeaderBytes - kReservedAt))) return std::nullopt;

  RecordHeader header;
  header.kind = at[4];
  header.flags = at[5];
  header.number = get(at + 8, 4);
  header.plain_length = get(at + 12, 4);
  header.stored_length = get(at + 16, 4);
  header.crc = get(at + kCrcAt, 4);
  std::copy_n(at + kIdAt, kIdBytes, header.id.begin());

  if (header.kind < kKindChunk || header.kind > kKindBlob) return std::nullopt;
  if ((header.flags & ~(kFlagZstd | kFlagEncrypted)) != 0) return std::nullopt;
  if (header.plain_length == 0 || header.plain_length > maxPlainBytes(header.kind)) return std::nullopt;
  if (header.stored_length <= header.tagBytes()) return std::nullopt;
  const size_t body = header.stored_length - header.tagBytes();
  // A compressed body is shorter than the plain bytes, any other as long.
  if (header.isZstd() ? body >= header.plain_length : body != header.plain_length) return std::nullopt;
  return header;
}

uint32_t recordCrc(Bytes record) noexcept { return crc32c(record.subspan(kCrcAt + 4), crc32c(record.first(kCrcAt))); }

void sealCrc(MutableBytes record) noexcept { put(record.data() + kCrcAt, 4, recordCrc(record)); }

std::array<uint8_t, 48> authenticatedPart(Bytes header) noexcept {
  std::array<uint8_t, 48> part;
  std::copy_n(header.data(), 16, part.data());
  std::copy_n(header.data() + kIdAt, kIdBytes, part.data() + 16);
  return part;
}

}  // namespace virtvault
