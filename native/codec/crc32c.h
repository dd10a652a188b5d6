// CRC32C (Castagnoli, reflected 0x82f63b78), as in RFC 3720.
#pragma once

#include <cstdint>
#include <span>

namespace virtvault {

// The checksum of `bytes`, continuing from `seed` (the checksum of what came
// before; 0 at the start).
uint32_t crc32c(std::span<const uint8_t> bytes, uint32_t seed = 0) noexcept;

// The same by tables alone: what runs where the processor has no instruction
// for it. Declared for its test.
uint32_t crc32cPortable(std::span<const uint8_t> bytes, uint32_t seed = 0) noexcept;

}  // namespace virtvault
