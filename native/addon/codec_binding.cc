// Glue for native/codec: checks arguments, borrows buffers, hands results over.
// The contract is src/native/codec.ts.
#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "addon/bindings.h"
#include "addon/convert.h"
#include "codec/crc32c.h"
#include "codec/record.h"
#include "codec/zstd.h"

namespace virtvault {
namespace {

constexpr size_t kMaxUint32 = std::numeric_limits<uint32_t>::max();

uint8_t toKind(const Arg& arg) { return static_cast<uint8_t>(toInteger(arg, kKindChunk, kKindBlob)); }

std::optional<SecretKey> toKey(const Arg& arg) {
  if (arg.isAbsent()) return std::nullopt;
  return SecretKey(toBytesOf(arg, kKeyBytes));
}

std::optional<PackKey> toPackKey(const Arg& arg) {
  if (arg.isAbsent()) return std::nullopt;
  PackKey pack_key{SecretKey(toBytesOf(fieldOf(arg, "packKey"), kKeyBytes)), {}};
  const Bytes context = toBytesOf(fieldOf(arg, "context"), kContextBytes);
  std::copy(context.begin(), context.end(), pack_key.context.begin());
  return pack_key;
}

// Pairs (offset, length), each within [0, size) bytes.
std::vector<Span> toSpans(const Arg& arg, size_t size) {
  const std::vector<uint32_t> numbers = toUint32s(arg);
  if (numbers.size() % 2 != 0) throwType(arg, "pairs (offset, length)");
  std::vector<Span> spans;
  spans.reserve(numbers.size() / 2);
  for (size_t i = 0; i < numbers.size(); i += 2) {
    if (numbers[i] > size || numbers[i + 1] > size - numbers[i]) {
      throwType(arg, "within the bytes: pair " + std::to_string(i / 2) + " ends past them");
    }
    spans.push_back({numbers[i], numbers[i + 1]});
  }
  return spans;
}

void checkPieceLengths(const Arg& arg, const std::vector<Span>& spans, uint8_t kind) {
  for (const Span& span : spans) {
    if (span.length == 0 || span.length > maxPlainBytes(kind)) {
      throwType(arg, "pieces of 1 to " + std::to_string(maxPlainBytes(kind)) + " bytes");
    }
  }
}

Napi::Value hashChunks(const Napi::CallbackInfo& info) {
  const Arg bytes_arg = argAt(info, 0, "bytes");
  const Arg options = argAt(info, 2, "options");
  const Bytes bytes = toBytes(bytes_arg);
  std::vector<Span> spans = toSpans(argAt(info, 1, "spans"), bytes.size());
  const uint8_t kind = toKind(fieldOf(options, "kind"));
  std::optional<SecretKey> key = toKey(fieldOf(options, "key"));

  return Task<HashedPieces>::run(
      info.Env(), {toObject(bytes_arg)},
      [bytes, spans = std::move(spans), kind, key] { return hashPieces(bytes, spans, kind, key); },
      [](Napi::Env env, HashedPieces& hashed) -> Napi::Value {
        Napi::Object result = Napi::Object::New(env);
        result.Set("ids", copyBytes(env, hashed.ids));
        result.Set("zero", copyBytes(env, hashed.zero));
        result.Set("sums", copyUint32s(env, hashed.sums));
        return result;
      });
}

Napi::Value encodeRecords(const Napi::CallbackInfo& info) {
  const Arg bytes_arg = argAt(info, 0, "bytes");
  const Arg spans_arg = argAt(info, 1, "spans");
  const Arg options = argAt(info, 2, "options");
  const Bytes bytes = toBytes(bytes_arg);
  std::vector<Span> spans = toSpans(spans_arg, bytes.size());

  EncodeSettings settings;
  settings.kind = toKind(fieldOf(options, "kind"));
  settings.first_record = static_cast<uint32_t>(toInteger(fieldOf(options, "firstRecord"), 0, kMaxUint32));
  settings.level = static_cast<int>(toInteger(fieldOf(options, "level"), 0, kMaxZstdLevel));
  settings.pack_key = toPackKey(fieldOf(options, "cipher"));
  settings.verify = toBoolean(fieldOf(options, "verify"));
  checkPieceLengths(spans_arg, spans, settings.kind);
  if (spans.size() > kMaxUint32 - settings.first_record) {
    throwType(fieldOf(options, "firstRecord"), "small enough for the records after it");
  }
  if (encodedBound(spans, settings.pack_key.has_value()) > kMaxUint32) {
    throwType(spans_arg, "under 4 GiB in all");
  }
  const Arg ids_arg = fieldOf(options, "ids");
  const Bytes ids = toBytesOf(ids_arg, spans.size() * kIdBytes);
  const Arg sums_arg = fieldOf(options, "sums");
  if (!sums_arg.isAbsent()) {
    settings.sums = toUint32s(sums_arg);
    if (settings.sums.size() != spans.size()) throwType(sums_arg, "one number per piece");
  }
  const size_t bound = encodedBound(spans, settings.pack_key.has_value());
  const Arg out_arg = fieldOf(options, "out");
  MutableBytes lent;
  std::vector<Napi::Object> held = {toObject(bytes_arg), toObject(ids_arg)};
  if (!out_arg.isAbsent()) {
    lent = toBytes(out_arg);
    if (lent.size() < bound) throwType(out_arg, "as large as records can become");
    held.push_back(toObject(out_arg));
  }
  auto keep = std::make_shared<Napi::ObjectReference>();
  if (!out_arg.isAbsent()) *keep = Napi::Persistent(toObject(out_arg));

  struct Encoded {
    OwnedBytes bytes;
    std::vector<Span> places;
  };
  return Task<Encoded>::run(
      info.Env(), std::move(held),
      [bytes, spans = std::move(spans), ids, settings = std::move(settings), lent, bound] {
        Encoded encoded;
        MutableBytes out = lent;
        if (out.empty()) {
          encoded.bytes = allocateBytes(bound);
          out = {encoded.bytes.data.get(), bound};
        }
        encoded.places = encodePieces(bytes, spans, ids, settings, out);
        const size_t used = encoded.places.empty() ? 0 : encoded.places.back().offset + encoded.places.back().length;
        if (encoded.bytes.data) shrinkBytes(encoded.bytes, used);
        encoded.bytes.size = used;
        return encoded;
      },
      [keep](Napi::Env env, Encoded& encoded) -> Napi::Value {
        std::vector<uint32_t> places;
        places.reserve(encoded.places.size() * 2);
        for (const Span& place : encoded.places) places.insert(places.end(), {place.offset, place.length});
        Napi::Object result = Napi::Object::New(env);
        if (keep->IsEmpty()) {
          result.Set("bytes", handOver(env, std::move(encoded.bytes.data), encoded.bytes.size));
        } else {
          const Napi::Uint8Array out = keep->Value().As<Napi::Uint8Array>();
          result.Set("bytes", Napi::Uint8Array::New(env, encoded.bytes.size, out.ArrayBuffer(), out.ByteOffset()));
        }
        result.Set("places", copyUint32s(env, places));
        return result;
      });
}

Napi::Value decodeRecords(const Napi::CallbackInfo& info) {
  const Arg bytes_arg = argAt(info, 0, "bytes");
  const Arg out_arg = argAt(info, 1, "out");
  const Arg options = argAt(info, 2, "options");
  const Bytes bytes = toBytes(bytes_arg);
  const MutableBytes out = toBytes(out_arg);
  std::vector<uint32_t> offsets = toUint32s(fieldOf(options, "offsets"));
  std::vector<Span> rooms = toSpans(fieldOf(options, "outSpans"), out.size());
  if (rooms.size() != offsets.size()) throwType(fieldOf(options, "outSpans"), "one pair per offset");
  const Arg ids_arg = fieldOf(options, "ids");
  const Bytes ids = toBytesOf(ids_arg, offsets.size() * kIdBytes);
  const uint8_t kind = toKind(fieldOf(options, "kind"));
  std::optional<PackKey> pack_key = toPackKey(fieldOf(options, "cipher"));
  std::optional<SecretKey> id_key = toKey(fieldOf(options, "idKey"));

  return Task<std::vector<RecordStatus>>::run(
      info.Env(), {toObject(bytes_arg), toObject(out_arg), toObject(ids_arg)},
      [bytes, out, offsets = std::move(offsets), rooms = std::move(rooms), ids, kind, pack_key, id_key] {
        std::vector<RecordTask> tasks;
        tasks.reserve(offsets.size());
        for (size_t i = 0; i < offsets.size(); i++) {
          // An offset past the end is damage of an index, not a bug: no header there.
          tasks.push_back({bytes.subspan(std::min<size_t>(offsets[i], bytes.size())),
                           ids.subspan(i * kIdBytes, kIdBytes), out.subspan(rooms[i].offset, rooms[i].length)});
        }
        return RecordDecoder(pack_key, id_key).decode(tasks, kind);
      },
      [](Napi::Env env, std::vector<RecordStatus>& statuses) -> Napi::Value { return copyBytes(env, statuses); });
}

Napi::Value scanRecords(const Napi::CallbackInfo& info) {
  const Arg bytes_arg = argAt(info, 0, "bytes");
  const Bytes bytes = toBytes(bytes_arg);
  if (bytes.size() > kMaxUint32) throwType(bytes_arg, "under 4 GiB");
  const auto offset = static_cast<size_t>(
      toInteger(argAt(info, 1, "offset"), 0, static_cast<int64_t>(bytes.size())));

  return Task<Scan>::run(
      info.Env(), {toObject(bytes_arg)}, [bytes, offset] { return scanPack(bytes, offset); },
      [](Napi::Env env, Scan& scan) -> Napi::Value {
        std::vector<uint32_t> fields;
        std::vector<uint8_t> ids;
        fields.reserve(scan.records.size() * 6);
        ids.reserve(scan.records.size() * kIdBytes);
        for (const auto& [at, header] : scan.records) {
          fields.insert(fields.end(),
                        {at, header.number, header.kind, header.flags, header.plain_length, header.stored_length});
          ids.insert(ids.end(), header.id.begin(), header.id.end());
        }
        Napi::Object result = Napi::Object::New(env);
        result.Set("fields", copyUint32s(env, fields));
        result.Set("ids", copyBytes(env, ids));
        result.Set("end", Napi::Number::New(env, static_cast<double>(scan.end)));
        result.Set("stop", Napi::Number::New(env, static_cast<double>(scan.stop)));
        return result;
      });
}

Napi::Value crc32cOf(const Napi::CallbackInfo& info) {
  const Bytes bytes = toBytes(argAt(info, 0, "bytes"));
  const Arg seed_arg = argAt(info, 1, "seed");
  const auto seed = seed_arg.isAbsent() ? 0 : static_cast<uint32_t>(toInteger(seed_arg, 0, kMaxUint32));
  return Napi::Number::New(info.Env(), crc32c(bytes, seed));
}

// A value of the index, as docs/format.md says: its checksum is over the id and all of it but the checksum itself.
constexpr size_t kIndexValueBytes = 40;
constexpr size_t kIndexSumBytes = 4;

Napi::Value indexSums(const Napi::CallbackInfo& info) {
  const Arg ids_arg = argAt(info, 0, "ids");
  const Bytes ids = toBytes(ids_arg);
  if (ids.size() % kIdBytes != 0) throwType(ids_arg, "32 bytes for each id");
  const size_t count = ids.size() / kIdBytes;
  const Bytes values = toBytesOf(argAt(info, 1, "values"), count * kIndexValueBytes);
  std::vector<uint32_t> sums(count);
  for (size_t i = 0; i < count; i++) {
    const Bytes summed = values.subspan(i * kIndexValueBytes, kIndexValueBytes - kIndexSumBytes);
    sums[i] = crc32c(summed, crc32c(ids.subspan(i * kIdBytes, kIdBytes)));
  }
  return copyUint32s(info.Env(), sums);
}

Napi::Value zstdCompress(const Napi::CallbackInfo& info) {
  const Arg bytes_arg = argAt(info, 0, "bytes");
  const Bytes bytes = toBytes(bytes_arg);
  if (bytes.size() > kMaxUint32) throwType(bytes_arg, "under 4 GiB");
  const int level = static_cast<int>(toInteger(argAt(info, 1, "level"), 1, kMaxZstdLevel));
  return callNow(info.Env(), [&]() -> Napi::Value {
    OwnedBytes frame = allocateBytes(zstdBound(bytes.size()));
    const auto length = zstdCompressInto({frame.data.get(), frame.size}, bytes, level);
    if (!length) throw NativeError("E_INTERNAL", "zstd: the frame is longer than zstd said it could be");
    shrinkBytes(frame, *length);
    return handOver(info.Env(), std::move(frame.data), frame.size);
  });
}

Napi::Value zstdPieces(const Napi::CallbackInfo& info) {
  const Arg bytes_arg = argAt(info, 0, "bytes");
  const Arg options = argAt(info, 2, "options");
  const Arg out_arg = fieldOf(options, "out");
  const Bytes bytes = toBytes(bytes_arg);
  const MutableBytes out = toBytes(out_arg);
  if (out.size() != bytes.size()) throwType(out_arg, "as long as the bytes");
  std::vector<Span> spans = toSpans(argAt(info, 1, "spans"), bytes.size());
  const int level = static_cast<int>(toInteger(fieldOf(options, "level"), 1, kMaxZstdLevel));

  return Task<std::vector<uint32_t>>::run(
      info.Env(), {toObject(bytes_arg), toObject(out_arg)},
      [bytes, out, level, spans = std::move(spans)] {
        std::vector<uint32_t> lengths;
        lengths.reserve(spans.size());
        for (const Span& span : spans) {
          // One byte less than the piece: what does not shrink is not wanted.
          const size_t room = span.length == 0 ? 0 : span.length - 1;
          const Bytes plain = bytes.subspan(span.offset, span.length);
          const auto length = zstdCompressInto(out.subspan(span.offset, room), plain, level);
          lengths.push_back(static_cast<uint32_t>(length.value_or(0)));
        }
        return lengths;
      },
      [](Napi::Env env, std::vector<uint32_t>& lengths) -> Napi::Value { return copyUint32s(env, lengths); });
}

Napi::Value zstdDecompress(const Napi::CallbackInfo& info) {
  const Bytes frame = toBytes(argAt(info, 0, "bytes"));
  const auto length = static_cast<size_t>(toInteger(argAt(info, 1, "plainLength"), 0, kMaxUint32));
  return callNow(info.Env(), [&]() -> Napi::Value {
    if (!zstdClaims(frame, length)) {
      throw NativeError("E_DAMAGED", "not one zstd frame of " + std::to_string(length) + " bytes");
    }
    OwnedBytes plain = allocateBytes(length);
    if (!zstdDecompressInto({plain.data.get(), plain.size}, frame)) {
      throw NativeError("E_DAMAGED", "not one zstd frame of " + std::to_string(length) + " bytes");
    }
    return handOver(info.Env(), std::move(plain.data), plain.size);
  });
}

}  // namespace

void initCodec(Napi::Env env, Napi::Object exports) {
  exports.Set("hashChunks", Napi::Function::New(env, hashChunks, "hashChunks"));
  exports.Set("encodeRecords", Napi::Function::New(env, encodeRecords, "encodeRecords"));
  exports.Set("decodeRecords", Napi::Function::New(env, decodeRecords, "decodeRecords"));
  exports.Set("scanRecords", Napi::Function::New(env, scanRecords, "scanRecords"));
  exports.Set("crc32c", Napi::Function::New(env, crc32cOf, "crc32c"));
  exports.Set("indexSums", Napi::Function::New(env, indexSums, "indexSums"));
  exports.Set("zstdCompress", Napi::Function::New(env, zstdCompress, "zstdCompress"));
  exports.Set("zstdPieces", Napi::Function::New(env, zstdPieces, "zstdPieces"));
  exports.Set("zstdDecompress", Napi::Function::New(env, zstdDecompress, "zstdDecompress"));
}

}  // namespace virtvault
