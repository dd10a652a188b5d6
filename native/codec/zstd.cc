#include "codec/zstd.h"

#include <zstd.h>
#include <zstd_errors.h>

#include <algorithm>
#include <array>
#include <memory>
#include <new>
#include <string>

#include "base/error.h"

namespace virtvault {
namespace {

// One context per thread, kept: making one costs about as much as compressing
// a chunk with it.
ZSTD_CCtx* compressor() {
  thread_local const std::unique_ptr<ZSTD_CCtx, Closer<ZSTD_freeCCtx>> context(ZSTD_createCCtx());
  if (!context) throw std::bad_alloc();
  return context.get();
}

ZSTD_DCtx* decompressor() {
  thread_local const std::unique_ptr<ZSTD_DCtx, Closer<ZSTD_freeDCtx>> context(ZSTD_createDCtx());
  if (!context) throw std::bad_alloc();
  return context.get();
}

}  // namespace

std::optional<size_t> zstdCompressInto(MutableBytes room, Bytes plain, int level) {
  ZSTD_CCtx* context = compressor();
  size_t result = ZSTD_CCtx_setParameter(context, ZSTD_c_compressionLevel, level);
  if (ZSTD_isError(result) == 0) {
    result = ZSTD_compress2(context, room.data(), room.size(), plain.data(), plain.size());
    if (ZSTD_isError(result) == 0) return result;
  }
  const ZSTD_ErrorCode code = ZSTD_getErrorCode(result);
  ZSTD_CCtx_reset(context, ZSTD_reset_session_only);
  if (code == ZSTD_error_dstSize_tooSmall) return std::nullopt;
  throw NativeError("E_INTERNAL", std::string("zstd: ") + ZSTD_getErrorString(code));
}

bool zstdClaims(Bytes frame, size_t plain_length) noexcept {
  // The length of the frame too, so that nothing hides behind it; and a
  // skippable frame, which says 0 bytes, is none of ours.
  constexpr std::array<uint8_t, 4> kFrameMagic = {0x28, 0xb5, 0x2f, 0xfd};
  if (frame.size() < kFrameMagic.size() || !std::equal(kFrameMagic.begin(), kFrameMagic.end(), frame.begin())) {
    return false;
  }
  return ZSTD_getFrameContentSize(frame.data(), frame.size()) == plain_length &&
         ZSTD_findFrameCompressedSize(frame.data(), frame.size()) == frame.size();
}

bool zstdDecompressInto(MutableBytes plain, Bytes frame) {
  if (!zstdClaims(frame, plain.size())) return false;
  return ZSTD_decompressDCtx(decompressor(), plain.data(), plain.size(), frame.data(), frame.size()) == plain.size();
}

size_t zstdBound(size_t plain_length) noexcept { return ZSTD_compressBound(plain_length); }

bool looksIncompressible(Bytes plain) noexcept {
  constexpr size_t kSmallest = 32 * 1024;
  constexpr size_t kSlices = 8;
  constexpr size_t kSlice = 512;
  constexpr size_t kSampled = kSlices * kSlice;
  if (plain.size() < kSmallest) return false;

  std::array<uint16_t, 256> counts{};
  const size_t stride = (plain.size() - kSlice) / (kSlices - 1);
  for (size_t slice = 0; slice < kSlices; slice++) {
    for (const uint8_t byte : plain.subspan(slice * stride, kSlice)) counts[byte]++;
  }
  // Collision entropy, never more than Shannon's: above 7.75 bits a byte, what
  // entropy coding can gain is under the 1/32 that a record asks for, and only
  // long repeats could shrink it.
  uint32_t squares = 0;
  for (const uint32_t count : counts) squares += count * (count - 1);
  constexpr double kHopeless = 0.00464515;  // 2 ** -7.75
  return squares < kHopeless * kSampled * (kSampled - 1);
}

}  // namespace virtvault
