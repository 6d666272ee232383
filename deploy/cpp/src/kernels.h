// The two inner loops of the resize, compiled for several instruction sets where the compiler can choose among them
// when the program starts. All of them compute the same integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define EAK_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define EAK_CLONES
#endif

namespace eak {

constexpr int kWeightBits = 32 - 8 - 2;  ///< Pillow's: 8 bits for the result, 2 for what overshoots.
constexpr std::size_t kLanes = 32;       ///< Bytes that blend_rows takes at a time.

/// Bytes behind a row's last pixel that resample_row may read, and write in the output.
constexpr std::size_t kRowPadding = 8;

/// How the pixels of one axis come from the input's: `count` weights each, `taps` apart, the first for pixel `first`.
struct Axis {
    int taps = 0;
    std::vector<int> first, count;
    std::vector<std::int32_t> weights;
    /// The same weights by twos, for instructions that multiply 16-bit pairs: for each two, four times their upper
    /// parts (weight >> kLowBits), then four times their lower ones. Made by pack_pairs.
    std::vector<std::int16_t> pairs;
};

constexpr int kLowBits = 12;

void pack_pairs(Axis &axis);

/// One output row of RGB pixels from one input row.
void resample_row(const std::uint8_t *in, const Axis &axis, std::uint8_t *out);

/// One output row of `bytes` bytes from `count` input rows that lie `stride` bytes apart.
void blend_rows(const std::uint8_t *in, std::size_t stride, const std::int32_t *weights, int count, std::size_t bytes,
                std::uint8_t *out);

}  // namespace eak
