#include "sha256.h"

#include <algorithm>
#include <cstring>

namespace eak {
namespace {

constexpr std::uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

inline std::uint32_t rotate(std::uint32_t value, int bits) { return (value >> bits) | (value << (32 - bits)); }

/// In C++, for processors without instructions for it.
void hash_block(std::uint32_t *state, const std::uint8_t *bytes) {
    std::uint32_t w[64];
    for (int i = 0; i < 16; ++i) {
        w[i] = std::uint32_t(bytes[4 * i]) << 24 | std::uint32_t(bytes[4 * i + 1]) << 16 |
               std::uint32_t(bytes[4 * i + 2]) << 8 | bytes[4 * i + 3];
    }
    for (int i = 16; i < 64; ++i) {
        const std::uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ (w[i - 15] >> 3);
        const std::uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ (w[i - 2] >> 10);
        w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    std::uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    std::uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; ++i) {
        const std::uint32_t t1 = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) +
                                 kRound[i] + w[i];
        const std::uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    const std::uint32_t sums[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += sums[i];
}

}  // namespace

void Sha256::hash_blocks(const std::uint8_t *bytes, std::size_t count) {
    if (has_sha_instructions()) {
        sha256_with_instructions(state_.data(), bytes, count, kRound);
        return;
    }
    for (; count > 0; --count, bytes += 64) hash_block(state_.data(), bytes);
}

void Sha256::update(const void *data, std::size_t size_bytes) {
    const auto *bytes = static_cast<const std::uint8_t *>(data);
    total_bytes_ += size_bytes;
    while (size_bytes > 0) {
        if (rest_size_ == 0 && size_bytes >= 64) {
            const std::size_t blocks = size_bytes / 64;
            hash_blocks(bytes, blocks);
            bytes += 64 * blocks, size_bytes -= 64 * blocks;
            continue;
        }
        const std::size_t taken = std::min(size_bytes, 64 - rest_size_);
        std::memcpy(rest_.data() + rest_size_, bytes, taken);
        rest_size_ += taken, bytes += taken, size_bytes -= taken;
        if (rest_size_ == 64) {
            hash_blocks(rest_.data(), 1);
            rest_size_ = 0;
        }
    }
}

std::string Sha256::hex() {
    const std::uint64_t bits = total_bytes_ * 8;
    const std::uint8_t one = 0x80, zero = 0;
    update(&one, 1);
    while (rest_size_ != 56) update(&zero, 1);
    std::uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = std::uint8_t(bits >> (56 - 8 * i));
    update(length, 8);
    static const char digits[] = "0123456789abcdef";
    std::string text;
    text.reserve(64);
    for (const std::uint32_t word : state_) {
        for (int shift = 28; shift >= 0; shift -= 4) text.push_back(digits[(word >> shift) & 15]);
    }
    return text;
}

std::string sha256_hex(const void *data, std::size_t size_bytes) {
    Sha256 digest;
    digest.update(data, size_bytes);
    return digest.hex();
}

}  // namespace eak
