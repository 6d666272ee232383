// The two inner loops of the resize, compiled for several instruction sets where the compiler can choose among them
// when the program starts. All of them compute the same integers.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
#define EAK_CLONES __attribute__((target_clones("avx2", "sse4.1", "default")))
#else
#define EAK_CLONES
#endif

namespace eak {

constexpr int kWeightBits = 32 - 8 - 2;  ///< Pillow's: 8 bits for the result, 2 for what overshoots.
constexpr std::size_t kLanes = 32;       ///< Rows of bytes are padded to a multiple of this.

/// Bytes behind a row's last pixel that resample_row may read.
constexpr std::size_t kRowPadding = 4;

/// One output row of `length` RGB pixels from one input row.
void resample_row(const std::uint8_t *in, const int *first, const int *count, const std::int32_t *weights, int taps,
                  int length, std::uint8_t *out);

/// One output row of `padded` bytes from `count` input rows that lie `stride` bytes apart.
void blend_rows(const std::uint8_t *in, std::size_t stride, const std::int32_t *weights, int count, std::size_t padded,
                std::uint8_t *out);

}  // namespace eak
