#include "kernels.h"

#include <cstring>

namespace eak {
namespace {

typedef std::int32_t Int4 __attribute__((vector_size(16)));
typedef std::uint8_t Byte4 __attribute__((vector_size(4)));

inline std::int32_t clamp(std::int32_t value) { return value < 0 ? 0 : value > 255 ? 255 : value; }

}  // namespace

EAK_CLONES
void resample_row(const std::uint8_t *in, const int *first, const int *count, const std::int32_t *weights, int taps,
                  int length, std::uint8_t *out) {
    for (int x = 0; x < length; ++x, weights += taps, out += 3) {
        Int4 sum = {1 << (kWeightBits - 1), 1 << (kWeightBits - 1), 1 << (kWeightBits - 1), 0};
        const std::uint8_t *pixel = in + 3 * first[x];
        for (int i = 0; i < count[x]; ++i, pixel += 3) {
            Byte4 bytes;  // the fourth belongs to the next pixel; its lane is not used
            std::memcpy(&bytes, pixel, 4);
            sum += __builtin_convertvector(bytes, Int4) * weights[i];
        }
        sum >>= kWeightBits;
        for (int c = 0; c < 3; ++c) out[c] = std::uint8_t(clamp(sum[c]));
    }
}

EAK_CLONES
void blend_rows(const std::uint8_t *in, std::size_t stride, const std::int32_t *weights, int count, std::size_t padded,
                std::uint8_t *out) {
    for (std::size_t x = 0; x < padded; x += kLanes) {
        std::int32_t sums[kLanes];
        for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] = 1 << (kWeightBits - 1);
        const std::uint8_t *row = in + x;
        for (int i = 0; i < count; ++i, row += stride) {
            for (std::size_t lane = 0; lane < kLanes; ++lane) sums[lane] += row[lane] * weights[i];
        }
        for (std::size_t lane = 0; lane < kLanes; ++lane) out[x + lane] = std::uint8_t(clamp(sums[lane] >> kWeightBits));
    }
}

}  // namespace eak
