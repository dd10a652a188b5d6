// Takes records apart. What comes in here is lies until decoded.
#include <algorithm>

#include "codec/record.h"
#include "codec/zstd.h"

namespace virtvault {
namespace {

// The bytes of the whole record, or nothing where they are not all there.
std::optional<Bytes> wholeRecord(Bytes bytes, const RecordHeader& header) noexcept {
  if (header.stored_length > bytes.size() - kHeaderBytes) return std::nullopt;
  return bytes.first(kHeaderBytes + header.stored_length);
}

}  // namespace

RecordDecoder::RecordDecoder(const std::optional<PackKey>& pack_key, const std::optional<SecretKey>& id_key)
    : hasher_(id_key) {
  if (pack_key) cipher_.emplace(*pack_key);
}

RecordStatus RecordDecoder::decode(Bytes bytes, uint8_t kind, Bytes id, MutableBytes plain) {
  const RecordStatus status = tryDecode(bytes, kind, id, plain);
  if (status != RecordStatus::kOk) std::fill(plain.begin(), plain.end(), uint8_t{0});
  return status;
}

RecordStatus RecordDecoder::tryDecode(Bytes bytes, uint8_t kind, Bytes id, MutableBytes plain) {
  const std::optional<RecordHeader> header = decodeHeader(bytes);
  if (!header || header->kind != kind) return RecordStatus::kBadHeader;
  // An unencrypted record in an encrypted pack is a forgery, not a variant.
  if (header->isEncrypted() != cipher_.has_value()) return RecordStatus::kBadHeader;
  const std::optional<Bytes> record = wholeRecord(bytes, *header);
  if (!record) return RecordStatus::kBadHeader;
  if (recordCrc(*record) != header->crc) return RecordStatus::kBadCrc;

  // The usual record goes straight to its place; one of another length than
  // asked for is still checked, elsewhere, so that the status says what is wrong.
  std::vector<uint8_t> elsewhere;
  const bool fits = plain.size() == header->plain_length;
  if (!fits) elsewhere.resize(header->plain_length);
  const MutableBytes target = fits ? plain : MutableBytes(elsewhere);

  Bytes body = record->subspan(kHeaderBytes);
  if (cipher_) {
    MutableBytes opened = target;
    if (header->isZstd()) {
      decrypted_.resize(body.size() - kTagBytes);
      opened = decrypted_;
    }
    if (!cipher_->open(header->number, authenticatedPart(*record), body, opened)) return RecordStatus::kBadTag;
    body = opened;
  }
  if (header->isZstd()) {
    if (!zstdDecompressInto(target, body)) return RecordStatus::kBadCompression;
  } else if (!cipher_) {
    std::copy(body.begin(), body.end(), target.begin());
  }
  if (!fits) return RecordStatus::kBadLength;

  const Id actual = hasher_.hash(kind, target);
  const bool named = std::equal(id.begin(), id.end(), header->id.begin(), header->id.end());
  return named && actual == header->id ? RecordStatus::kOk : RecordStatus::kBadId;
}

Scan scanPack(Bytes bytes, size_t offset) {
  Scan scan;
  while (offset < bytes.size()) {
    const Bytes rest = bytes.subspan(offset);
    const std::optional<RecordHeader> header = decodeHeader(rest);
    const std::optional<Bytes> record = header ? wholeRecord(rest, *header) : std::nullopt;
    if (!record) {
      scan.stop = header || rest.size() < kHeaderBytes ? ScanStop::kTorn : ScanStop::kDamaged;
      break;
    }
    if (recordCrc(*record) != header->crc) {
      scan.stop = ScanStop::kDamaged;
      break;
    }
    scan.records.push_back({static_cast<uint32_t>(offset), *header});
    offset += record->size();
  }
  scan.end = offset;
  return scan;
}

}  // namespace virtvault
