// FIPS 180-4, sixteen messages side by side. The names of variables are the standard's.
#include "codec/sha256_wide.h"

#include <algorithm>
#include <utility>

#include "codec/sha256_parts.h"

#if defined(__x86_64__)
#include <immintrin.h>
// GCC 12 takes what its own header leaves undefined on purpose for a mistake (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

namespace virtvault::sha256_wide {

using sha256_lanes::Digest;
using sha256_lanes::State;

#if defined(__x86_64__)

namespace {

using sha256_parts::kBlock;
using sha256_parts::kRound;
using sha256_parts::Tail;
using sha256_parts::toDigest;

#define VIRTVAULT_WIDE __attribute__((target("avx512f,avx512bw")))
#define VIRTVAULT_INLINE VIRTVAULT_WIDE __attribute__((always_inline)) inline

using Words = __m512i[16];
using At = std::array<const uint8_t*, kLanes>;

// Of each lane the eight words of its state. Only constants index these, and
// those of a block, so that all of them stay in registers.
struct Wide {
  __m512i words[8];
};

template <int imm>
VIRTVAULT_INLINE __m512i three(__m512i x, __m512i y, __m512i z) noexcept {
  return _mm512_ternarylogic_epi32(x, y, z, imm);
}

constexpr int kXor = 0x96;
constexpr int kChoose = 0xca;
constexpr int kMajority = 0xe8;

template <int one, int two, int shift>
VIRTVAULT_INLINE __m512i smallSigma(__m512i x) noexcept {
  return three<kXor>(_mm512_ror_epi32(x, one), _mm512_ror_epi32(x, two), _mm512_srli_epi32(x, shift));
}

template <int one, int two, int last>
VIRTVAULT_INLINE __m512i bigSigma(__m512i x) noexcept {
  return three<kXor>(_mm512_ror_epi32(x, one), _mm512_ror_epi32(x, two), _mm512_ror_epi32(x, last));
}

// Words are not moved from name to name after a round: the names move on.
template <size_t t>
VIRTVAULT_INLINE void round(__m512i (&s)[8], Words& w, const uint32_t* k) noexcept {
  constexpr auto at = [](size_t name) { return (8 + name - t % 8) % 8; };
  if constexpr (t >= 16) {
    const __m512i sum = _mm512_add_epi32(w[t % 16], w[(t + 9) % 16]);
    w[t % 16] = _mm512_add_epi32(
        sum, _mm512_add_epi32(smallSigma<7, 18, 3>(w[(t + 1) % 16]), smallSigma<17, 19, 10>(w[(t + 14) % 16])));
  }
  const __m512i a = s[at(0)], e = s[at(4)];
  const __m512i known = _mm512_add_epi32(
      s[at(7)], _mm512_add_epi32(w[t % 16], _mm512_set1_epi32(static_cast<int>(k[t]))));
  const __m512i one = _mm512_add_epi32(
      known, _mm512_add_epi32(bigSigma<6, 11, 25>(e), three<kChoose>(e, s[at(5)], s[at(6)])));
  const __m512i two = _mm512_add_epi32(bigSigma<2, 13, 22>(a), three<kMajority>(a, s[at(1)], s[at(2)]));
  s[at(3)] = _mm512_add_epi32(s[at(3)], one);
  s[at(7)] = _mm512_add_epi32(one, two);
}

template <size_t... t>
VIRTVAULT_INLINE void allRounds(__m512i (&s)[8], Words& w, const uint32_t* k, std::index_sequence<t...>) noexcept {
  (round<t>(s, w, k), ...);
}

//   in     register i: the sixteen words of lane i's block
//   out    register i: word i of the sixteen lanes
VIRTVAULT_INLINE void transpose(Words& w) noexcept {
  Words half;
#define VIRTVAULT_PAIR(i)                                         \
  half[2 * (i)] = _mm512_unpacklo_epi32(w[2 * (i)], w[2 * (i) + 1]); \
  half[2 * (i) + 1] = _mm512_unpackhi_epi32(w[2 * (i)], w[2 * (i) + 1]);
  VIRTVAULT_PAIR(0) VIRTVAULT_PAIR(1) VIRTVAULT_PAIR(2) VIRTVAULT_PAIR(3)
  VIRTVAULT_PAIR(4) VIRTVAULT_PAIR(5) VIRTVAULT_PAIR(6) VIRTVAULT_PAIR(7)
#undef VIRTVAULT_PAIR
  // Of four lanes each: in 128 bits one word of each of them.
#define VIRTVAULT_FOUR(i)                                                     \
  w[4 * (i)] = _mm512_unpacklo_epi64(half[4 * (i)], half[4 * (i) + 2]);       \
  w[4 * (i) + 1] = _mm512_unpackhi_epi64(half[4 * (i)], half[4 * (i) + 2]);   \
  w[4 * (i) + 2] = _mm512_unpacklo_epi64(half[4 * (i) + 1], half[4 * (i) + 3]); \
  w[4 * (i) + 3] = _mm512_unpackhi_epi64(half[4 * (i) + 1], half[4 * (i) + 3]);
  VIRTVAULT_FOUR(0) VIRTVAULT_FOUR(1) VIRTVAULT_FOUR(2) VIRTVAULT_FOUR(3)
#undef VIRTVAULT_FOUR
  // A 4 x 4 transposition of those 128 bits, for each of four words.
#define VIRTVAULT_COLUMN(i)                                                     \
  half[i] = _mm512_shuffle_i32x4(w[i], w[4 + (i)], 0x88);                       \
  half[4 + (i)] = _mm512_shuffle_i32x4(w[i], w[4 + (i)], 0xdd);                 \
  half[8 + (i)] = _mm512_shuffle_i32x4(w[8 + (i)], w[12 + (i)], 0x88);          \
  half[12 + (i)] = _mm512_shuffle_i32x4(w[8 + (i)], w[12 + (i)], 0xdd);         \
  w[i] = _mm512_shuffle_i32x4(half[i], half[8 + (i)], 0x88);                    \
  w[8 + (i)] = _mm512_shuffle_i32x4(half[i], half[8 + (i)], 0xdd);              \
  w[4 + (i)] = _mm512_shuffle_i32x4(half[4 + (i)], half[12 + (i)], 0x88);       \
  w[12 + (i)] = _mm512_shuffle_i32x4(half[4 + (i)], half[12 + (i)], 0xdd);
  VIRTVAULT_COLUMN(0) VIRTVAULT_COLUMN(1) VIRTVAULT_COLUMN(2) VIRTVAULT_COLUMN(3)
#undef VIRTVAULT_COLUMN
}

template <size_t... lane>
VIRTVAULT_INLINE void load(Words& w, const At& at, size_t offset, std::index_sequence<lane...>) noexcept {
  const __m512i big_endian = _mm512_broadcast_i32x4(_mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203));
  ((w[lane] = _mm512_shuffle_epi8(_mm512_loadu_si512(at[lane] + offset), big_endian)), ...);
}

// Adds `count` blocks at `at[lane]` to each lane's state.
VIRTVAULT_WIDE void addBlocks(Wide& state, const At& at, size_t count) noexcept {
  __m512i s[8];
  for (size_t i = 0; i < 8; i++) s[i] = state.words[i];
  // Hidden from the compiler, which would make each constant in two instructions of its own instead of an operand.
  const uint32_t* k = kRound.data();
  __asm__("" : "+r"(k));
  for (size_t block = 0; block < count; block++) {
    Words w;
    load(w, at, block * kBlock, std::make_index_sequence<16>());
    transpose(w);
    allRounds(s, w, k, std::make_index_sequence<64>());
    for (size_t i = 0; i < 8; i++) s[i] = state.words[i] = _mm512_add_epi32(s[i], state.words[i]);
  }
}

}  // namespace

bool isAvailable() noexcept {
  static const bool available = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0;
  }();
  return available;
}

VIRTVAULT_WIDE std::array<Digest, kLanes> finish(const State& start, uint64_t before, uint8_t first,
                                                 const At& messages, size_t length) noexcept {
  //   blocks    |f.......|........|........|....1000|
  //   message    |..............................|
  //              head     straight from it  tail
  const size_t head = std::min(length, kBlock - 1);
  const size_t straight = (length - head) / kBlock;
  const size_t done = head + straight * kBlock;
  Wide state;
  for (size_t i = 0; i < 8; i++) state.words[i] = _mm512_set1_epi32(static_cast<int>(start[i]));
  std::array<Tail, kLanes> tails;
  At at;

  size_t used = 1 + head;
  for (size_t lane = 0; lane < kLanes; lane++) {
    tails[lane].bytes[0] = first;
    std::copy_n(messages[lane], head, tails[lane].bytes.begin() + 1);
    at[lane] = tails[lane].bytes.data();
  }
  if (head == kBlock - 1) {
    addBlocks(state, at, 1);
    for (size_t lane = 0; lane < kLanes; lane++) at[lane] = messages[lane] + head;
    addBlocks(state, at, straight);
    used = length - done;
    for (size_t lane = 0; lane < kLanes; lane++) {
      tails[lane] = Tail();
      std::copy_n(messages[lane] + done, used, tails[lane].bytes.begin());
    }
  }
  for (size_t lane = 0; lane < kLanes; lane++) {
    tails[lane].finish(used, before + 1 + length);
    at[lane] = tails[lane].bytes.data();
  }
  addBlocks(state, at, tails[0].blocks);

  alignas(64) std::array<std::array<uint32_t, kLanes>, 8> words;
  for (size_t i = 0; i < 8; i++) _mm512_store_si512(words[i].data(), state.words[i]);
  std::array<Digest, kLanes> digests;
  for (size_t lane = 0; lane < kLanes; lane++) {
    State own;
    for (size_t i = 0; i < own.size(); i++) own[i] = words[i][lane];
    digests[lane] = toDigest(own);
  }
  return digests;
}

#undef VIRTVAULT_INLINE
#undef VIRTVAULT_WIDE

#else

bool isAvailable() noexcept { return false; }
std::array<Digest, kLanes> finish(const State&, uint64_t, uint8_t, const std::array<const uint8_t*, kLanes>&,
                                  size_t) noexcept {
  return {};
}

#endif

}  // namespace virtvault::sha256_wide
