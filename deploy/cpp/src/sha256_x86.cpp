// SHA-256 with the instructions that x86 has for it, where the processor has them: ten times as fast, and a start hashes
// megabytes.
#include "sha256.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace eak {

#if defined(__x86_64__)

bool has_sha_instructions() {
    static const bool found = [] {
        unsigned a = 0, b = 0, c = 0, d = 0;
        const bool sse = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_SSSE3) != 0 && (c & bit_SSE4_1) != 0;
        return sse && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & (1U << 29)) != 0;
    }();
    return found;
}

__attribute__((target("sha,ssse3,sse4.1"))) void sha256_with_instructions(std::uint32_t *state, const std::uint8_t *bytes,
                                                                          std::size_t blocks,
                                                                          const std::uint32_t *constants) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
    const auto load = [](const void *from) __attribute__((target("sha,ssse3,sse4.1"))) {
        return _mm_loadu_si128(static_cast<const __m128i *>(from));
    };
    // The instructions want the words as ABEF and CDGH.
    __m128i low = _mm_shuffle_epi32(load(state), 0xb1), high = _mm_shuffle_epi32(load(state + 4), 0x1b);
    __m128i abef = _mm_alignr_epi8(low, high, 8), cdgh = _mm_blend_epi16(high, low, 0xf0);
    for (; blocks > 0; --blocks, bytes += 64) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i words[4];
        for (int i = 0; i < 4; ++i) words[i] = _mm_shuffle_epi8(load(bytes + 16 * i), big_endian);
        for (int i = 0; i < 16; ++i) {
            const __m128i now = words[i & 3];
            const __m128i sum = _mm_add_epi32(now, load(constants + 4 * i));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0e));
            // Sixteen words on: their place is that of the four just used.
            const __m128i next = words[(i + 1) & 3], last = words[(i + 3) & 3];
            const __m128i nine = _mm_alignr_epi8(last, words[(i + 2) & 3], 4);
            words[i & 3] = _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32(now, next), nine), last);
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    low = _mm_shuffle_epi32(abef, 0x1b), high = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(state), _mm_blend_epi16(low, high, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(state + 4), _mm_alignr_epi8(high, low, 8));
}

#else

bool has_sha_instructions() { return false; }
void sha256_with_instructions(std::uint32_t *, const std::uint8_t *, std::size_t, const std::uint32_t *) {}

#endif

}  // namespace eak
