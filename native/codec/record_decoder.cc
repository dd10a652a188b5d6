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

std::vector<RecordStatus> RecordDecoder::decode(std::span<const RecordTask> tasks, uint8_t kind) {
  std::vector<RecordStatus> statuses(tasks.size());
  IdQueue queue(hasher_, kind, [&](size_t i, const Id& actual) {
    if (!std::equal(actual.begin(), actual.end(), tasks[i].id.begin())) statuses[i] = RecordStatus::kBadId;
  });
  for (size_t i = 0; i < tasks.size(); i++) {
    const auto& [bytes, id, plain] = tasks[i];
    const Opened opened = open(bytes, kind, id, plain);
    statuses[i] = opened.status;
    if (opened.status != RecordStatus::kOk) continue;
    if (opened.plain.data() != plain.data()) std::copy(opened.plain.begin(), opened.plain.end(), plain.begin());
    queue.add(i, plain);
  }
  queue.flush();
  for (size_t i = 0; i < tasks.size(); i++) {
    if (statuses[i] != RecordStatus::kOk) std::fill(tasks[i].plain.begin(), tasks[i].plain.end(), uint8_t{0});
  }
  return statuses;
}

RecordDecoder::Opened RecordDecoder::open(Bytes bytes, uint8_t kind, Bytes id, MutableBytes room) {
  const std::optional<RecordHeader> header = decodeHeader(bytes);
  if (!header || header->kind != kind) return {RecordStatus::kBadHeader, {}};
  // An unencrypted record in an encrypted pack is a forgery, not a variant.
  if (header->isEncrypted() != cipher_.has_value()) return {RecordStatus::kBadHeader, {}};
  const std::optional<Bytes> record = wholeRecord(bytes, *header);
  if (!record) return {RecordStatus::kBadHeader, {}};
  if (recordCrc(*record) != header->crc) return {RecordStatus::kBadCrc, {}};

  // The usual record goes straight to its place; one of another length than
  // asked for is still checked, elsewhere, so that the status says what is wrong.
  const bool fits = room.size() == header->plain_length;
  if (!fits) elsewhere_.resize(header->plain_length);
  const MutableBytes target = fits ? room : MutableBytes(elsewhere_);

  Bytes plain = record->subspan(kHeaderBytes);
  if (cipher_) {
    MutableBytes opened = target;
    if (header->isZstd()) {
      decrypted_.resize(plain.size() - kTagBytes);
      opened = decrypted_;
    }
    if (!cipher_->open(header->number, authenticatedPart(*record), plain, opened)) return {RecordStatus::kBadTag, {}};
    plain = opened;
  }
  if (header->isZstd()) {
    if (!zstdDecompressInto(target, plain)) return {RecordStatus::kBadCompression, {}};
    plain = target;
  }
  if (!fits) return {RecordStatus::kBadLength, {}};
  if (!std::equal(id.begin(), id.end(), header->id.begin(), header->id.end())) return {RecordStatus::kBadId, {}};
  return {RecordStatus::kOk, plain};
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
