// zstd in single shots: frames with their content size and without checksum.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "codec/chunk_id.h"

namespace virtvault {

constexpr int kMaxZstdLevel = 19;

// Compresses `plain` into `room`; undefined where the frame would not fit, so
// a smaller room is also a way to ask "only if it shrinks this much". Throws
// E_INTERNAL where zstd fails otherwise.
std::optional<size_t> zstdCompressInto(MutableBytes room, Bytes plain, int level);

// Whether `frame` says that it is exactly one frame of `plain_length` bytes.
// Cheap, and asked before memory is taken on a stranger's word.
bool zstdClaims(Bytes frame, size_t plain_length) noexcept;

// Decompresses exactly one frame that says it holds, and does hold, exactly
// `plain.size()` bytes. false for anything else; `plain` is then garbage.
bool zstdDecompressInto(MutableBytes plain, Bytes frame);

// Bytes that any frame of `plain_length` bytes fits in.
size_t zstdBound(size_t plain_length) noexcept;

// Whether, by a sample, bytes are spread so evenly that only repeats could make
// `plain` smaller. false for anything short.
bool looksIncompressible(Bytes plain) noexcept;

}  // namespace virtvault
