// SHA-256 of sixteen messages at a time, in AVX-512 registers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "codec/sha256_lanes.h"

namespace virtvault::sha256_wide {

// A register has one word of each. Needs no SHA instructions, and is faster
// than they are from kWorthwhile messages on: docs/decisions has the figures.
constexpr size_t kLanes = 16;
constexpr size_t kWorthwhile = 8;

// Whether this processor has the instructions; finish() may not be called where it has not.
bool isAvailable() noexcept;

// Digests of `first` ++ message, of each of sixteen messages of one length
// (some may be the same), going on from `state`, which has seen `before` bytes
// (a multiple of 64).
std::array<sha256_lanes::Digest, kLanes> finish(const sha256_lanes::State& state, uint64_t before, uint8_t first,
                                                const std::array<const uint8_t*, kLanes>& messages,
                                                size_t length) noexcept;

}  // namespace virtvault::sha256_wide
