#include "kernels.h"

#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define EAK_AVX2
#include <immintrin.h>
#endif

namespace eak {
namespace {

inline std::int32_t clamp(std::int32_t value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

}  // namespace

namespace {

void resample_plain(const std::uint8_t *in, const Axis &axis, std::uint8_t *out) {
    const std::int32_t *weights = axis.weights.data();
    for (std::size_t x = 0; x < axis.first.size(); ++x, weights += axis.taps, out += 3) {
        std::int32_t sums[3] = {1 << (kWeightBits - 1), 1 << (kWeightBits - 1), 1 << (kWeightBits - 1)};
        const std::uint8_t *pixel = in + 3 * axis.first[x];
        for (int i = 0; i < axis.count[x]; ++i, pixel += 3) {
            for (int c = 0; c < 3; ++c) sums[c] += pixel[c] * weights[i];
        }
        for (int c = 0; c < 3; ++c) out[c] = std::uint8_t(clamp(sums[c] >> kWeightBits));
    }
}

#ifdef EAK_AVX2

/// Two taps a step: the lower half of a register sums up the weights' upper parts, the upper half the lower ones.
__attribute__((target("avx2"))) void resample_avx2(const std::uint8_t *in, const Axis &axis, std::uint8_t *out) {
    // Two neighbouring pixels to 16-bit pairs of red, green, blue; the rest zero.
    const __m256i spread = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    const __m128i half = _mm_set1_epi32(1 << (kWeightBits - 1));
    const int pairs = (axis.taps + 1) / 2;
    const std::int16_t *weights = axis.pairs.data();
    for (std::size_t x = 0; x < axis.first.size(); ++x, weights += 16 * pairs, out += 3) {
        __m256i sum = _mm256_setzero_si256();
        const std::uint8_t *pixel = in + 3 * axis.first[x];
        for (int i = 0; 2 * i < axis.count[x]; ++i, pixel += 6) {
            std::int64_t bytes;
            std::memcpy(&bytes, pixel, 8);
            const __m256i values = _mm256_shuffle_epi8(_mm256_set1_epi64x(bytes), spread);
            const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(weights + 16 * i));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(values, two));
        }
        __m128i total = _mm_slli_epi32(_mm256_castsi256_si128(sum), kLowBits);
        total = _mm_add_epi32(_mm_add_epi32(total, _mm256_extracti128_si256(sum, 1)), half);
        total = _mm_srai_epi32(total, kWeightBits);
        total = _mm_packus_epi16(_mm_packs_epi32(total, total), total);  // clamps to 0..255
        const int result = _mm_cvtsi128_si32(total);
        std::memcpy(out, &result, 4);  // the fourth is the next pixel's, or the padding
    }
}

#endif

}  // namespace

void pack_pairs(Axis &axis) {
    const auto taps = std::size_t(axis.taps), pairs = (taps + 1) / 2, length = axis.first.size();
    axis.pairs.assign(length * pairs * 16, 0);
    for (std::size_t x = 0; x < length; ++x) {
        for (std::size_t t = 0; t < taps; ++t) {
            const std::int32_t weight = axis.weights[x * taps + t];
            std::int16_t *const out = &axis.pairs[(x * pairs + t / 2) * 16 + t % 2];
            for (int copy = 0; copy < 4; ++copy) {
                out[2 * copy] = std::int16_t(weight >> kLowBits);
                out[2 * copy + 8] = std::int16_t(weight & ((1 << kLowBits) - 1));
            }
        }
    }
}

void resample_row(const std::uint8_t *in, const Axis &axis, std::uint8_t *out) {
#ifdef EAK_AVX2
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx2) return resample_avx2(in, axis, out);
#endif
    resample_plain(in, axis, out);
}

EAK_CLONES
void blend_rows(const std::uint8_t *in, std::size_t stride, const std::int32_t *weights, int count, std::size_t bytes,
                std::uint8_t *out) {
    std::size_t x = 0;
    for (; x + kLanes <= bytes; x += kLanes) {
        std::int32_t sums[kLanes];
        for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] = 1 << (kWeightBits - 1);
        const std::uint8_t *row = in + x;
        for (int i = 0; i < count; ++i, row += stride) {
            for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += row[lane] * weights[i];
        }
        for (std::size_t lane = 0; lane < kLanes; ++lane) out[x + lane] = std::uint8_t(clamp(sums[lane] >> kWeightBits));
    }
    for (; x < bytes; ++x) {
        std::int32_t sum = 1 << (kWeightBits - 1);
        for (int i = 0; i < count; ++i) sum += in[std::size_t(i) * stride + x] * weights[i];
        out[x] = std::uint8_t(clamp(sum >> kWeightBits));
    }
}

}  // namespace eak
