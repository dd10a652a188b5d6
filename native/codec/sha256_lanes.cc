// FIPS 180-4. The constants and names of variables are the standard's.
#include "codec/sha256_lanes.h"

#include "codec/sha256_parts.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace virtvault::sha256_lanes {

#if defined(__x86_64__)

namespace {

using sha256_parts::kBlock;
using sha256_parts::kRound;
using sha256_parts::Tail;
using sha256_parts::toDigest;

#define VIRTVAULT_SHA __attribute__((target("sha,sse4.1,ssse3")))

// The instructions want the eight words as (a, b, e, f) and (c, d, g, h), the
// first in the highest place.
struct Halves {
  __m128i abef;
  __m128i cdgh;
};

VIRTVAULT_SHA Halves split(const State& s) noexcept {
  const auto word = [&s](size_t i) { return static_cast<int>(s[i]); };
  return {_mm_set_epi32(word(0), word(1), word(4), word(5)), _mm_set_epi32(word(2), word(3), word(6), word(7))};
}

VIRTVAULT_SHA State join(const Halves& halves) noexcept {
  alignas(16) std::array<uint32_t, 4> feba;
  alignas(16) std::array<uint32_t, 4> hgdc;
  _mm_store_si128(reinterpret_cast<__m128i*>(feba.data()), halves.abef);
  _mm_store_si128(reinterpret_cast<__m128i*>(hgdc.data()), halves.cdgh);
  return {feba[3], feba[2], hgdc[3], hgdc[2], feba[1], feba[0], hgdc[1], hgdc[0]};
}

#define VIRTVAULT_INLINE VIRTVAULT_SHA __attribute__((always_inline)) inline

// A lane at work on a block. Only constants index `w`, so that all of it is in registers.
struct Lane {
  __m128i abef;
  __m128i cdgh;
  __m128i w[4];
};

VIRTVAULT_INLINE void load(Lane& lane, const uint8_t* block) noexcept {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  const auto words = [&](size_t i) __attribute__((target("sha,sse4.1,ssse3"), always_inline)) {
    return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 16 * i)), big_endian);
  };
  lane.w[0] = words(0);
  lane.w[1] = words(1);
  lane.w[2] = words(2);
  lane.w[3] = words(3);
}

// Four rounds, and the four words of the schedule that are wanted four steps on.
template <size_t step>
VIRTVAULT_INLINE void fourRounds(Lane& lane) noexcept {
  const __m128i k = _mm_load_si128(reinterpret_cast<const __m128i*>(kRound.data() + 4 * step));
  __m128i sum = _mm_add_epi32(lane.w[step % 4], k);
  lane.cdgh = _mm_sha256rnds2_epu32(lane.cdgh, lane.abef, sum);
  sum = _mm_shuffle_epi32(sum, 0x0e);
  lane.abef = _mm_sha256rnds2_epu32(lane.abef, lane.cdgh, sum);
  if constexpr (step < 12) {
    const __m128i back_seven = _mm_alignr_epi8(lane.w[(step + 3) % 4], lane.w[(step + 2) % 4], 4);
    const __m128i partial = _mm_sha256msg1_epu32(lane.w[step % 4], lane.w[(step + 1) % 4]);
    lane.w[step % 4] = _mm_sha256msg2_epu32(_mm_add_epi32(partial, back_seven), lane.w[(step + 3) % 4]);
  }
}

template <size_t... steps>
VIRTVAULT_INLINE void allRounds(Lane& first, Lane& second, std::index_sequence<steps...>) noexcept {
  ((fourRounds<steps>(first), fourRounds<steps>(second)), ...);
}

template <size_t... steps>
VIRTVAULT_INLINE void allRounds(Lane& only, std::index_sequence<steps...>) noexcept {
  (fourRounds<steps>(only), ...);
}

VIRTVAULT_INLINE void addTo(Halves& state, Lane& lane) noexcept {
  state.abef = lane.abef = _mm_add_epi32(state.abef, lane.abef);
  state.cdgh = lane.cdgh = _mm_add_epi32(state.cdgh, lane.cdgh);
}

// Adds `count` blocks at `at[lane]` to each lane's state.
VIRTVAULT_SHA void addBlocks(std::array<Halves, 2>& state, std::array<const uint8_t*, 2> at, size_t count) noexcept {
  Halves one = state[0];
  Halves two = state[1];
  Lane first{one.abef, one.cdgh, {}};
  Lane second{two.abef, two.cdgh, {}};
  for (size_t i = 0; i < count; i++) {
    load(first, at[0] + i * kBlock);
    load(second, at[1] + i * kBlock);
    allRounds(first, second, std::make_index_sequence<16>());
    addTo(one, first);
    addTo(two, second);
  }
  state = {one, two};
}

VIRTVAULT_SHA void addBlock(Halves& state, const uint8_t* at) noexcept {
  Lane lane{state.abef, state.cdgh, {}};
  load(lane, at);
  allRounds(lane, std::make_index_sequence<16>());
  addTo(state, lane);
}

}  // namespace

bool isAvailable() noexcept {
  static const bool available = [] {
    __builtin_cpu_init();
    // cpuid leaf 7, EBX bit 29; gcc 12's __builtin_cpu_supports has no "sha".
    unsigned int eax = 7, ebx = 0, ecx = 0, edx = 0;
    unsigned int highest = 0, b = 0, c = 0, d = 0;
    __asm__("cpuid" : "=a"(highest), "=b"(b), "=c"(c), "=d"(d) : "a"(0), "c"(0));
    if (highest < 7) return false;
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (ebx >> 29 & 1) != 0 && __builtin_cpu_supports("sse4.1") != 0 && __builtin_cpu_supports("ssse3") != 0;
  }();
  return available;
}

State initialState() noexcept {
  return {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
}

VIRTVAULT_SHA State afterBlock(const State& state, std::span<const uint8_t, 64> block) noexcept {
  Halves halves = split(state);
  addBlock(halves, block.data());
  return join(halves);
}

VIRTVAULT_SHA std::array<Digest, kLanes> finish(const State& state, uint64_t before, uint8_t first,
                                                const std::array<const uint8_t*, kLanes>& messages,
                                                size_t length) noexcept {
  //   blocks    |f.......|........|........|....1000|
  //   message    |..............................|
  //              head     straight from it  tail
  const size_t head = std::min(length, kBlock - 1);
  const size_t straight = (length - head) / kBlock;
  const size_t done = head + straight * kBlock;
  std::array<Halves, kLanes> halves;
  halves.fill(split(state));
  std::array<Tail, kLanes> tails;
  std::array<const uint8_t*, kLanes> at;

  size_t used = 0;
  for (size_t lane = 0; lane < kLanes; lane++) {
    tails[lane].bytes[0] = first;
    std::copy_n(messages[lane], head, tails[lane].bytes.begin() + 1);
    at[lane] = tails[lane].bytes.data();
  }
  if (head == kBlock - 1) {
    addBlocks(halves, at, 1);
    for (size_t lane = 0; lane < kLanes; lane++) at[lane] = messages[lane] + head;
    addBlocks(halves, at, straight);
    used = length - done;
    for (size_t lane = 0; lane < kLanes; lane++) {
      tails[lane] = Tail();
      std::copy_n(messages[lane] + done, used, tails[lane].bytes.begin());
    }
  } else {
    used = 1 + head;
  }
  std::array<Digest, kLanes> digests;
  for (size_t lane = 0; lane < kLanes; lane++) {
    tails[lane].finish(used, before + 1 + length);
    at[lane] = tails[lane].bytes.data();
  }
  addBlocks(halves, at, tails[0].blocks);
  for (size_t lane = 0; lane < kLanes; lane++) digests[lane] = toDigest(join(halves[lane]));
  return digests;
}

VIRTVAULT_SHA Digest finishShort(const State& state, uint64_t before, std::span<const uint8_t> tail) noexcept {
  Tail last;
  std::copy(tail.begin(), tail.end(), last.bytes.begin());
  last.finish(tail.size(), before + tail.size());
  Halves halves = split(state);
  addBlock(halves, last.bytes.data());
  return toDigest(join(halves));
}

#undef VIRTVAULT_INLINE
#undef VIRTVAULT_SHA

#else

bool isAvailable() noexcept { return false; }
State initialState() noexcept { return {}; }
State afterBlock(const State& state, std::span<const uint8_t, 64>) noexcept { return state; }
std::array<Digest, kLanes> finish(const State&, uint64_t, uint8_t, const std::array<const uint8_t*, kLanes>&,
                                  size_t) noexcept {
  return {};
}
Digest finishShort(const State&, uint64_t, std::span<const uint8_t>) noexcept { return {}; }

#endif

}  // namespace virtvault::sha256_lanes
