// The library's SHA-256, with this processor's instructions where it has them, against the same in C++ alone.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../src/sha256.h"
#include "edgeattn_kit.h"

namespace eak {
// This program is linked with sha256.cpp and these instead of sha256_x86.cpp.
bool has_sha_instructions() { return false; }
void sha256_with_instructions(std::uint32_t *, const std::uint8_t *, std::size_t, const std::uint32_t *) { std::abort(); }
}  // namespace eak

int main() {
    std::vector<std::uint8_t> bytes(100003);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = std::uint8_t(i * 7 + i / 251);
    std::vector<std::size_t> sizes{4096, 99999, bytes.size()};
    for (std::size_t size = 0; size < 300; ++size) sizes.push_back(size);
    for (const std::size_t size : sizes) {
        char text[65];
        if (eak_sha256(bytes.data(), size, text) != EAK_OK || eak::sha256_hex(bytes.data(), size) != text) {
            std::fprintf(stderr, "the hashes of %zu bytes differ\n", size);
            return 1;
        }
    }
    std::puts("sha256_same: passed");
    return 0;
}
