// Records of a pack: made, taken apart, and walked. docs/format.md is the
// authority for the bytes, record_header.h draws them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "codec/chunk_id.h"
#include "codec/record_cipher.h"
#include "codec/record_header.h"

namespace virtvault {

// [offset, offset + length) of some bytes; who makes one has checked it.
struct Span {
  uint32_t offset;
  uint32_t length;
};

// Memory from malloc: unlike a vector's it is not written before its use.
struct OwnedBytes {
  std::unique_ptr<uint8_t, Closer<std::free>> data;
  size_t size = 0;
};

// Keeps memory for `size` bytes; throws std::bad_alloc.
OwnedBytes allocateBytes(size_t size);
// Gives the memory after `size` back.
void shrinkBytes(OwnedBytes& bytes, size_t size) noexcept;

struct HashedPieces {
  std::vector<uint8_t> ids;
  std::vector<uint8_t> zero;
  // CRC32C of the plain bytes, 0 of a zero piece.
  std::vector<uint32_t> sums;
};

// As hashChunks in src/native/codec.ts.
HashedPieces hashPieces(Bytes bytes, const std::vector<Span>& spans, uint8_t kind, const std::optional<SecretKey>& key);

struct EncodeSettings {
  uint8_t kind = 0;
  uint32_t first_record = 0;
  // 0 stores plain.
  int level = 0;
  std::optional<PackKey> pack_key;
  bool verify = false;
  // What hashPieces said of the pieces, or empty; `verify` compares them.
  std::vector<uint32_t> sums;
};

// The most that records of these pieces can take.
size_t encodedBound(const std::vector<Span>& spans, bool encrypted) noexcept;

// As encodeRecords in src/native/codec.ts; `ids` has kIdBytes per span, `out`
// encodedBound(), which is under 4 GiB. Gives the places of the records, which
// begin at the start of `out`, back to back. Throws E_INTERNAL.
std::vector<Span> encodePieces(Bytes bytes, const std::vector<Span>& spans, Bytes ids, const EncodeSettings& settings,
                               MutableBytes out);

// RECORD_STATUS in src/native/codec.ts.
enum class RecordStatus : uint8_t {
  kOk = 0,
  kBadHeader = 1,
  kBadCrc = 2,
  kBadTag = 3,
  kBadCompression = 4,
  kBadId = 5,
  kBadLength = 6,
};

// A record to take apart: at the start of `bytes`, with the id that it must
// have, to `plain`.
struct RecordTask {
  Bytes bytes;
  Bytes id;
  MutableBytes plain;
};

// Takes records apart; holds what a batch shares. Confined to the thread that
// uses it. Throws E_INTERNAL only where the machine fails; never for what the
// bytes are.
class RecordDecoder {
 public:
  RecordDecoder(const std::optional<PackKey>& pack_key, const std::optional<SecretKey>& id_key);

  // The plain bytes of the records go to their places, which are all zero for
  // any status but kOk. Bytes are checked against their ids.
  std::vector<RecordStatus> decode(std::span<const RecordTask> tasks, uint8_t kind);

  struct Opened {
    RecordStatus status;
    // In `room`, or within the record where it holds them as they are.
    Bytes plain;
  };
  // Everything but the comparison of the plain bytes with the id; that the
  // record names `id` is checked. `room` has the length that is expected.
  Opened open(Bytes bytes, uint8_t kind, Bytes id, MutableBytes room);

 private:
  IdHasher hasher_;
  std::optional<RecordCipher> cipher_;
  std::vector<uint8_t> decrypted_;
  std::vector<uint8_t> elsewhere_;
};

enum class ScanStop : uint8_t {
  // At the end of the bytes.
  kEnd = 0,
  // A record begins whose end is not there.
  kTorn = 1,
  // No header, or one that its checksum denies.
  kDamaged = 2,
};

struct ScannedRecord {
  uint32_t offset;
  RecordHeader header;
};

struct Scan {
  std::vector<ScannedRecord> records;
  // Where the walk stopped: the end of the last whole record.
  size_t end = 0;
  ScanStop stop = ScanStop::kEnd;
};

// Walks whole records with a good checksum from `offset` on, as scanRecords in
// src/native/codec.ts.
Scan scanPack(Bytes bytes, size_t offset);

}  // namespace virtvault
