// Names pieces and makes records of them.
#include <algorithm>
#include <new>
#include <string>
#include <utility>

#include "base/error.h"
#include "codec/crc32c.h"
#include "codec/record.h"
#include "codec/zstd.h"

namespace virtvault {
namespace {

// Compressed bytes shorter than this are kept: the others would cost a
// decompression at every read and save next to nothing.
size_t worthwhile(size_t plain_length) noexcept { return plain_length - plain_length / 32; }

class RecordEncoder {
 public:
  explicit RecordEncoder(const EncodeSettings& settings) : settings_(settings) {
    if (settings.pack_key) cipher_.emplace(*settings.pack_key);
    if (settings.verify) verifier_.emplace(settings.pack_key, std::nullopt);
  }

  // Writes the record to the start of `room`, which has a header more than the
  // plain bytes at least, and returns its length.
  size_t encode(Bytes plain, Bytes id, uint32_t number, MutableBytes room) {
    RecordHeader header;
    header.kind = settings_.kind;
    header.flags = cipher_ ? kFlagEncrypted : 0;
    header.number = number;
    header.plain_length = static_cast<uint32_t>(plain.size());
    std::copy(id.begin(), id.end(), header.id.begin());

    Bytes body = plain;
    const MutableBytes payload = room.subspan(kHeaderBytes);
    if (const auto length = compress(plain, payload)) {
      header.flags |= kFlagZstd;
      body = payload.first(*length);
    }
    header.stored_length = static_cast<uint32_t>(body.size() + header.tagBytes());
    encodeHeader(header, room);
    if (cipher_) {
      cipher_->seal(number, authenticatedPart(room), body, payload.first(header.stored_length));
    } else if (!header.isZstd()) {
      std::copy(body.begin(), body.end(), payload.begin());
    }

    const MutableBytes record = room.first(kHeaderBytes + header.stored_length);
    sealCrc(record);
    if (verifier_) verify(record, id, plain);
    return record.size();
  }

  // Whether the bytes are still those that were named.
  void compareSum(Bytes plain, uint32_t sum) const {
    if (!verifier_ || crc32c(plain) == sum) return;
    throw NativeError("E_INTERNAL", "the bytes of a piece changed after they were named: memory or processor is faulty");
  }

 private:
  std::optional<size_t> compress(Bytes plain, MutableBytes payload) {
    if (settings_.level == 0 || plain.size() < 2) return std::nullopt;
    const MutableBytes room = payload.first(worthwhile(plain.size()) - 1);
    // So little room makes the fast levels give up on random data at 3.7 GB/s,
    // which a sample before them does not better enough to matter; level 6
    // needs ten times as long. There a sample asks whether to let level 1, which
    // finds repeats as well, have the last word (EPYC, 2026-11).
    constexpr int kLastFastLevel = 3;
    if (settings_.level > kLastFastLevel && looksIncompressible(plain) && !zstdCompressInto(room, plain, 1)) {
      return std::nullopt;
    }
    return zstdCompressInto(room, plain, settings_.level);
  }

  // docs/decisions says what comparing catches and what hashing again would.
  void verify(Bytes record, Bytes id, Bytes plain) {
    scratch_.resize(plain.size());
    const auto [status, decoded] = verifier_->open(record, settings_.kind, id, scratch_);
    const bool same = status == RecordStatus::kOk && std::equal(plain.begin(), plain.end(), decoded.begin(), decoded.end());
    if (same) return;
    throw NativeError("E_INTERNAL", "a new record does not decode to what went in (status " +
                                        std::to_string(static_cast<int>(status)) +
                                        "): memory, processor or compressor is faulty");
  }

  const EncodeSettings& settings_;
  std::optional<RecordCipher> cipher_;
  std::optional<RecordDecoder> verifier_;
  std::vector<uint8_t> scratch_;
};

}  // namespace

OwnedBytes allocateBytes(size_t size) {
  // malloc(0) may be null; a byte more is simpler than a special case.
  OwnedBytes bytes{std::unique_ptr<uint8_t, Closer<std::free>>(static_cast<uint8_t*>(std::malloc(size + 1))), size};
  if (!bytes.data) throw std::bad_alloc();
  return bytes;
}

void shrinkBytes(OwnedBytes& bytes, size_t size) noexcept {
  bytes.size = size;
  void* smaller = std::realloc(bytes.data.get(), size + 1);
  if (smaller == nullptr) return;
  static_cast<void>(bytes.data.release());
  bytes.data.reset(static_cast<uint8_t*>(smaller));
}

HashedPieces hashPieces(Bytes bytes, const std::vector<Span>& spans, uint8_t kind,
                        const std::optional<SecretKey>& key) {
  IdHasher hasher(key);
  HashedPieces hashed{std::vector<uint8_t>(spans.size() * kIdBytes), std::vector<uint8_t>(spans.size()),
                      std::vector<uint32_t>(spans.size())};
  const auto pieceAt = [&](size_t i) { return bytes.subspan(spans[i].offset, spans[i].length); };
  IdQueue queue(hasher, kind, [&](size_t i, const Id& id) {
    std::copy(id.begin(), id.end(), hashed.ids.begin() + static_cast<std::ptrdiff_t>(i * kIdBytes));
    hashed.sums[i] = crc32c(pieceAt(i));
  });
  for (size_t i = 0; i < spans.size(); i++) {
    const Bytes piece = pieceAt(i);
    if (isZero(piece)) {
      hashed.zero[i] = 1;
    } else {
      queue.add(i, piece);
    }
  }
  queue.flush();
  return hashed;
}

size_t encodedBound(const std::vector<Span>& spans, bool encrypted) noexcept {
  size_t bound = 0;
  for (const Span& span : spans) bound += kHeaderBytes + span.length + (encrypted ? kTagBytes : 0);
  return bound;
}

std::vector<Span> encodePieces(Bytes bytes, const std::vector<Span>& spans, Bytes ids, const EncodeSettings& settings,
                               MutableBytes out) {
  RecordEncoder encoder(settings);
  std::vector<Span> places;
  places.reserve(spans.size());
  size_t used = 0;
  for (size_t i = 0; i < spans.size(); i++) {
    const Bytes piece = bytes.subspan(spans[i].offset, spans[i].length);
    if (!settings.sums.empty()) encoder.compareSum(piece, settings.sums[i]);
    const size_t length = encoder.encode(piece, ids.subspan(i * kIdBytes, kIdBytes),
                                         settings.first_record + static_cast<uint32_t>(i), out.subspan(used));
    places.push_back({static_cast<uint32_t>(used), static_cast<uint32_t>(length)});
    used += length;
  }
  return places;
}

}  // namespace virtvault
