#include "image.h"

#include "error.h"

#ifndef EAK_WITH_PNG

namespace eak {
Image decode_png(const std::uint8_t *, std::size_t, const std::string &name, int &) {
    throw KitError(EAK_ERR_IMAGE, name + " is a PNG file, and this program was built without libpng. Install "
                                         "libpng's development package and build again, or convert it to PPM.");
}
}  // namespace eak

#else

#include <csetjmp>
#include <cstring>
#include <new>

#include <png.h>

namespace eak {
namespace {

constexpr std::size_t kMaxChunkBytes = std::size_t(64) << 20;

/// Everything that libpng may leave by longjmp, so nothing here has a destructor.
struct Decoder {
    png_structp png;
    png_infop info;
    const std::uint8_t *data;
    std::size_t left;
    std::jmp_buf escape;
    char message[160];
    bool out_of_memory;

    png_uint_32 width, height;
    int depth, color, interlace;
    bool transparent;

    bool open();
    bool read(std::uint8_t *pixels, png_bytep *rows);
    void close() {
        if (png != nullptr) png_destroy_read_struct(&png, &info, nullptr);
    }
};

[[noreturn]] void on_error(png_structp png, png_const_charp text) {
    auto &decoder = *static_cast<Decoder *>(png_get_error_ptr(png));
    std::strncpy(decoder.message, text, sizeof decoder.message - 1);
    // libpng has no error numbers.
    decoder.out_of_memory = std::strstr(text, "emory") != nullptr;
    std::longjmp(decoder.escape, 1);
}

void on_warning(png_structp, png_const_charp) {}

void on_read(png_structp png, png_bytep out, png_size_t size) {
    auto &decoder = *static_cast<Decoder *>(png_get_io_ptr(png));
    if (size > decoder.left) png_error(png, "the data ends early (truncated)");
    std::memcpy(out, decoder.data, size);
    decoder.data += size, decoder.left -= size;
}

bool Decoder::open() {
    png = nullptr, info = nullptr;
    message[sizeof message - 1] = message[0] = '\0';
    out_of_memory = false;
    if (setjmp(escape) != 0) return false;
    png = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, on_warning);
    info = png == nullptr ? nullptr : png_create_info_struct(png);
    if (info == nullptr) {
        out_of_memory = true;
        return false;
    }
    png_set_read_fn(png, this, on_read);
    png_set_user_limits(png, EAK_MAX_IMAGE_PIXELS, EAK_MAX_IMAGE_PIXELS);
    png_set_chunk_malloc_max(png, kMaxChunkBytes);
    png_read_info(png, info);
    png_get_IHDR(png, info, &width, &height, &depth, &color, &interlace, nullptr, nullptr);
    transparent = png_get_valid(png, info, PNG_INFO_tRNS) != 0 || (color & PNG_COLOR_MASK_ALPHA) != 0;
    return true;
}

/// Decode into rows of 3 or, if transparent, 4 bytes a pixel.
bool Decoder::read(std::uint8_t *pixels, png_bytep *rows) {
    if (setjmp(escape) != 0) return false;
    png_set_expand(png);
    png_set_gray_to_rgb(png);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    const std::size_t stride = std::size_t(width) * (transparent ? 4 : 3);
    if (png_get_rowbytes(png, info) != stride) png_error(png, "unexpected row size");
    for (png_uint_32 y = 0; y < height; ++y) rows[y] = pixels + y * stride;
    png_read_image(png, rows);
    png_read_end(png, nullptr);
    return true;
}

/// Pillow's alpha_composite over opaque white, in its fixed-point arithmetic.
void composite_on_white(const std::uint8_t *rgba, std::size_t count, std::uint8_t *rgb) {
    for (std::size_t i = 0; i < count; ++i, rgba += 4, rgb += 3) {
        const std::uint32_t alpha = rgba[3];
        const std::uint32_t front = alpha * 128, back = 255 * 128 - front;
        for (int c = 0; c < 3; ++c) {
            const std::uint32_t sum = rgba[c] * front + 255 * back + (0x80 << 7);
            rgb[c] = alpha == 0 ? 255 : std::uint8_t((((sum >> 8) + sum) >> 8) >> 7);
        }
    }
}

/// The content of a chunk by its four letters; null if there is none.
const std::uint8_t *find_chunk(const std::uint8_t *data, std::size_t size_bytes, const char *letters, std::size_t &size) {
    std::size_t at = 8;
    while (size_bytes - at >= 12) {
        size = std::size_t(data[at]) << 24 | std::size_t(data[at + 1]) << 16 | std::size_t(data[at + 2]) << 8 | data[at + 3];
        if (size > size_bytes - at - 12) return nullptr;
        if (std::memcmp(data + at + 4, letters, 4) == 0) return data + at + 8;
        at += 12 + size;
    }
    return nullptr;
}

}  // namespace

Image decode_png(const std::uint8_t *data, std::size_t size_bytes, const std::string &name, int &orientation) {
    const auto number = [&](std::size_t at) {
        return std::uint64_t(data[at]) << 24 | std::uint64_t(data[at + 1]) << 16 | std::uint64_t(data[at + 2]) << 8 | data[at + 3];
    };
    // Before libpng sets anything aside for it.
    if (size_bytes >= 24) check_image_size(number(16), number(20), name);
    Decoder decoder;
    decoder.data = data, decoder.left = size_bytes;
    struct Closer {
        Decoder &decoder;
        ~Closer() { decoder.close(); }
    } closer{decoder};
    const auto fail = [&]() {
        if (decoder.out_of_memory) throw std::bad_alloc();
        throw KitError(EAK_ERR_IMAGE, name + " cannot be decoded: " + decoder.message + ". Replace it.");
    };
    if (!decoder.open()) fail();
    check_image_size(decoder.width, decoder.height, name);
    if (decoder.depth == 16) {
        throw KitError(EAK_ERR_IMAGE, name + " has 16 bits a channel. Convert it to 8-bit RGB.");
    }
    if (decoder.color == PNG_COLOR_TYPE_GRAY && decoder.depth < 8 && decoder.transparent) {
        throw KitError(EAK_ERR_IMAGE, name + " is grey with fewer than 8 bits and a transparent colour. "
                                             "Convert it to 8-bit RGB.");
    }
    std::size_t chunk_size = 0;
    if (find_chunk(data, size_bytes, "acTL", chunk_size) != nullptr) {
        throw KitError(EAK_ERR_IMAGE, name + " is an animation. Save the frame you mean as its own file.");
    }
    if (const auto *exif = find_chunk(data, size_bytes, "eXIf", chunk_size)) {
        orientation = exif_orientation(exif, chunk_size);
    }
    Image image{int(decoder.width), int(decoder.height), {}};
    const std::size_t count = std::size_t(image.width) * std::size_t(image.height);
    std::vector<png_bytep> rows(decoder.height);
    image.pixels.resize(count * (decoder.transparent ? 4 : 3));
    if (!decoder.read(image.pixels.data(), rows.data())) fail();
    if (decoder.transparent) {
        std::vector<std::uint8_t> rgb(count * 3);
        composite_on_white(image.pixels.data(), count, rgb.data());
        image.pixels.swap(rgb);
    }
    return image;
}

}  // namespace eak

#endif
