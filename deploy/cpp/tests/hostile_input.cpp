// Damaged images and failing allocations end in a status, never in a crash or a leak.
//
// operator new is replaced: while armed, the n-th allocation of this thread fails.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <new>
#include <string>
#include <vector>

#include "edgeattn_kit.hpp"

namespace {
thread_local long allocations_left = -1;  // -1: all succeed
}

void *operator new(std::size_t size) {
    if (allocations_left == 0) throw std::bad_alloc();
    if (allocations_left > 0) --allocations_left;
    if (void *memory = std::malloc(size > 0 ? size : 1)) return memory;
    throw std::bad_alloc();
}
void operator delete(void *memory) noexcept { std::free(memory); }
void operator delete(void *memory, std::size_t) noexcept { std::free(memory); }

namespace {

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            std::fprintf(stderr, "%s:%d: %s is not so; last error: %s\n", __FILE__, __LINE__, #condition,    \
                         eak_last_error());                                                                  \
            std::exit(1);                                                                                    \
        }                                                                                                    \
    } while (0)

std::string read(const std::string &path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
}

eak_status decode(const std::string &bytes) {
    eak_image *image = nullptr;
    // A buffer of exactly this size, so that a sanitizer sees a read behind it.
    const std::vector<std::uint8_t> exact(bytes.begin(), bytes.end());
    const eak_status status = eak_image_decode(exact.data(), exact.size(), &image);
    CHECK((status == EAK_OK) == (image != nullptr));
    CHECK(status == EAK_OK || status == EAK_ERR_IMAGE);
    CHECK(status == EAK_OK || *eak_last_error() != '\0');
    eak_image_free(image);
    return status;
}

/// Cut short, and with bytes changed at random: decoded or refused.
void damage(const std::string &bytes, int changes) {
    for (std::size_t kept = 1; kept < bytes.size(); kept += 1 + bytes.size() / 61) {
        CHECK(decode(bytes.substr(0, kept)) == EAK_ERR_IMAGE);
    }
    std::uint32_t random = 12345;
    const auto next = [&random] { return random = random * 1664525U + 1013904223U, random >> 8; };
    int refused = 0;
    for (int i = 0; i < changes; ++i) {
        std::string changed = bytes;
        // Headers matter more than pixels.
        const std::size_t range = i % 2 == 0 ? changed.size() : changed.size() < 700 ? changed.size() : 700;
        for (int k = 0; k < 1 + i % 4; ++k) changed[next() % range] = char(next());
        refused += decode(changed) != EAK_OK;
    }
    std::printf("  %d of %d changed files refused\n", refused, changes);
}

/// Let the first, second, ... allocation of a step fail until it succeeds. Returns how many failed.
template <class Step>
int fail_each_allocation(const Step &step) {
    for (int n = 0; n < 10000; ++n) {
        allocations_left = n;
        const eak_status status = step();
        allocations_left = -1;
        if (status == EAK_OK) return n;
        CHECK(status == EAK_ERR_OUT_OF_MEMORY);
    }
    CHECK(!"the step succeeds in the end");
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const std::string folder = argv[1];
    std::string ppm = "P6\n# a comment\n16 9 255\n";
    for (int i = 0; i < 16 * 9 * 3; ++i) ppm += char(i);
    CHECK(decode(ppm) == EAK_OK);
    damage(ppm, 400);
    CHECK(decode(std::string("P6 16 9 65535\n") + std::string(16 * 9 * 6, 'x')) == EAK_ERR_IMAGE);
    CHECK(decode("P6 999999999 999999999 255\n") == EAK_ERR_IMAGE);
    CHECK(decode("P6") == EAK_ERR_IMAGE);

    const std::string jpeg = read(folder + "/images/0001.jpg");
    const bool with_jpeg = !jpeg.empty() && decode(jpeg) == EAK_OK;
    if (with_jpeg) {
        damage(jpeg, 400);
        const int failed = fail_each_allocation([&] {
            eak_image *image = nullptr;
            const eak_status status =
                eak_image_decode(reinterpret_cast<const std::uint8_t *>(jpeg.data()), jpeg.size(), &image);
            eak_image_free(image);
            return status;
        });
        CHECK(failed >= 1);
        std::printf("decoding: %d allocations, each failed once\n", failed);
    } else {
        std::printf("no JPEG to test with, or built without libjpeg\n");
    }

    eak_classifier *classifier = nullptr;
    CHECK(eak_open(folder.c_str(), nullptr, &classifier) == EAK_OK);
    std::vector<std::uint8_t> pixels(64 * 48 * 3, 100);
    eak_model_info info{};
    info.struct_size = sizeof info;
    CHECK(eak_get_info(classifier, &info) == EAK_OK);
    std::vector<std::uint8_t> small(std::size_t(info.input_size) * std::size_t(info.input_size) * 3);
    int width = 64;
    const int failed = fail_each_allocation([&] {
        return eak_preprocess(classifier, pixels.data(), width, 48, std::size_t(width) * 3, small.data(), small.size());
    });
    CHECK(failed >= 1);
    std::printf("preprocessing: %d allocations, each failed once\n", failed);
    // A plan that was left half-made is not used for the next frame of the same size.
    std::vector<std::uint8_t> again(small.size());
    CHECK(eak_preprocess(classifier, pixels.data(), width, 48, std::size_t(width) * 3, again.data(), again.size()) == EAK_OK);
    CHECK(small == again && small.front() == 100);
    eak_close(classifier);

    // The manifest: every allocation up to the first of OpenVINO's own, whose behaviour is not this kit's.
    int manifest = 0;
    for (; manifest < 200; ++manifest) {
        allocations_left = manifest;
        const eak_status status = eak_open(folder.c_str(), nullptr, &classifier);
        allocations_left = -1;
        CHECK(status == EAK_ERR_OUT_OF_MEMORY && classifier == nullptr);
    }
    std::printf("opening: the first %d allocations, each failed once\nhostile_input: passed\n", manifest);
    return 0;
}
