// The 64 bytes before every payload in a pack. All integers little endian.
//
//   offset size
//      0    4   magic "VVR1"
//      4    1   kind: 1 chunk, 2 tree node, 3 blob
//      5    1   flags: bit 0 zstd, bit 1 encrypted, others 0
//      6    2   length of the header: 64
//      8    4   number of the record in its pack, from 0
//     12    4   plain length, 1 .. 4 MiB for a chunk, 1 .. 16 MiB otherwise
//     16    4   stored length: the payload that follows, with its 16 byte tag
//     20    4   CRC32C of header [0, 20), header [24, 64), payload
//     24   32   id
//     56    8   zero
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "codec/chunk_id.h"

namespace virtvault {

constexpr size_t kHeaderBytes = 64;
constexpr uint8_t kKindChunk = 1;
constexpr uint8_t kKindBlob = 3;
constexpr uint8_t kFlagZstd = 1;
constexpr uint8_t kFlagEncrypted = 2;
constexpr size_t kMaxChunkBytes = 4 * 1024 * 1024;
constexpr size_t kMaxPlainBytes = 16 * 1024 * 1024;

constexpr size_t maxPlainBytes(uint8_t kind) noexcept { return kind == kKindChunk ? kMaxChunkBytes : kMaxPlainBytes; }

struct RecordHeader {
  uint8_t kind = 0;
  uint8_t flags = 0;
  uint32_t number = 0;
  uint32_t plain_length = 0;
  uint32_t stored_length = 0;
  uint32_t crc = 0;
  Id id{};

  bool isZstd() const noexcept { return (flags & kFlagZstd) != 0; }
  bool isEncrypted() const noexcept { return (flags & kFlagEncrypted) != 0; }
  size_t tagBytes() const noexcept;
};

// Writes `header` to the first kHeaderBytes of `record`.
void encodeHeader(const RecordHeader& header, MutableBytes record) noexcept;

// Nothing where the bytes are too few, or no header, or its fields contradict
// each other. Says nothing of the checksum, nor whether the payload is there.
std::optional<RecordHeader> decodeHeader(Bytes bytes) noexcept;

// The checksum that a whole record should have in its header.
uint32_t recordCrc(Bytes record) noexcept;
// Puts it there.
void sealCrc(MutableBytes record) noexcept;

// What AES-GCM authenticates of a header besides the payload: [0, 16) and
// [24, 56). The stored length and the checksum follow from the payload.
std::array<uint8_t, 48> authenticatedPart(Bytes header) noexcept;

}  // namespace virtvault
