#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace eak {

/// SHA-256 (FIPS 180-4).
class Sha256 {
public:
    void update(const void *data, std::size_t size_bytes);
    /// Lower-case hexadecimal. The object is used up.
    std::string hex();

private:
    void hash_blocks(const std::uint8_t *bytes, std::size_t count);

    std::array<std::uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    std::array<std::uint8_t, 64> rest_{};
    std::size_t rest_size_ = 0;
    std::uint64_t total_bytes_ = 0;
};

std::string sha256_hex(const void *data, std::size_t size_bytes);

/// Whether this processor has instructions for it.
bool has_sha_instructions();

/// Hash blocks of 64 bytes with them; only where has_sha_instructions().
void sha256_with_instructions(std::uint32_t *state, const std::uint8_t *bytes, std::size_t blocks,
                              const std::uint32_t *constants);

}  // namespace eak
