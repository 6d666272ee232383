#include "image.h"

#include <cstring>

#include "error.h"

namespace eak {
namespace {

constexpr std::uint16_t kOrientationTag = 0x0112, kShort = 3, kLong = 4;

[[noreturn]] void fail(const std::string &name, const std::string &why) {
    throw KitError(EAK_ERR_IMAGE, name + " " + why);
}

/// A plain-text header of three numbers, then the pixels.
Image decode_ppm(const std::uint8_t *data, std::size_t size_bytes, const std::string &name) {
    std::size_t at = 2;
    std::uint64_t numbers[3] = {};
    for (std::uint64_t &number : numbers) {
        bool comment = false;
        while (at < size_bytes && (comment || data[at] == '#' || std::strchr(" \t\r\n", data[at]) != nullptr)) {
            if (data[at] == '\0') break;
            comment = data[at] == '#' || (comment && data[at] != '\n');
            ++at;
        }
        const std::size_t start = at;
        while (at < size_bytes && data[at] >= '0' && data[at] <= '9' && at - start < 9) {
            number = number * 10 + (data[at++] - std::uint64_t('0'));
        }
        if (at == start) fail(name, "is a damaged PPM file. Replace it.");
    }
    ++at;  // one white space
    check_image_size(numbers[0], numbers[1], name);
    if (numbers[2] != 255) fail(name, "is a PPM file that is not 8-bit. Convert it to 8-bit RGB.");
    const std::size_t wanted = std::size_t(numbers[0] * numbers[1] * 3);
    if (at > size_bytes || size_bytes - at < wanted) fail(name, "is truncated. Replace it.");
    Image image{int(numbers[0]), int(numbers[1]), {}};
    image.pixels.assign(data + at, data + at + wanted);
    return image;
}

/// Turn stored pixels upright, as the EXIF orientation says.
Image upright(Image image, int orientation) {
    if (orientation < 2 || orientation > 8) return image;
    const bool swapped = orientation >= 5;
    Image result{swapped ? image.height : image.width, swapped ? image.width : image.height, {}};
    result.pixels.resize(image.pixels.size());
    std::uint8_t *out = result.pixels.data();
    for (int y = 0; y < result.height; ++y) {
        for (int x = 0; x < result.width; ++x, out += 3) {
            // Where this pixel lies in the stored image.
            int sx = swapped ? y : x, sy = swapped ? x : y;
            if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) sx = image.width - 1 - sx;
            if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) sy = image.height - 1 - sy;
            std::memcpy(out, &image.pixels[(std::size_t(sy) * std::size_t(image.width) + std::size_t(sx)) * 3], 3);
        }
    }
    return result;
}

}  // namespace

void check_image_size(std::uint64_t width, std::uint64_t height, const std::string &name) {
    const std::string size = std::to_string(width) + " x " + std::to_string(height) + " pixels";
    if (width < EAK_MIN_IMAGE_SIDE || height < EAK_MIN_IMAGE_SIDE) {
        fail(name, "is " + size + "; each side must be at least " + std::to_string(EAK_MIN_IMAGE_SIDE) + ".");
    }
    if (width > EAK_MAX_IMAGE_PIXELS || height > EAK_MAX_IMAGE_PIXELS || width * height > EAK_MAX_IMAGE_PIXELS) {
        fail(name, "is too large: " + size + "; the limit is " + std::to_string(EAK_MAX_IMAGE_PIXELS / 1000000) +
                       " megapixels. Scale it down.");
    }
}

int exif_orientation(const std::uint8_t *data, std::size_t size_bytes) {
    if (size_bytes < 8) return 0;
    const bool big = data[0] == 'M' && data[1] == 'M';
    if (!big && !(data[0] == 'I' && data[1] == 'I')) return 0;
    const auto u16 = [&](std::size_t at) {
        return std::uint32_t(big ? data[at] << 8 | data[at + 1] : data[at + 1] << 8 | data[at]);
    };
    const auto u32 = [&](std::size_t at) {
        return big ? u16(at) << 16 | u16(at + 2) : u16(at + 2) << 16 | u16(at);
    };
    const std::size_t directory = u32(4);
    if (directory > size_bytes - 2) return 0;
    const std::size_t count = u16(directory);
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t at = directory + 2 + 12 * i;
        if (at + 12 > size_bytes) return 0;
        if (u16(at) != kOrientationTag) continue;
        const std::uint32_t value = u16(at + 2) == kShort ? u16(at + 8) : u16(at + 2) == kLong ? u32(at + 8) : 0;
        return value >= 1 && value <= 8 ? int(value) : 0;
    }
    return 0;
}

Image decode_image(const std::uint8_t *data, std::size_t size_bytes, const std::string &name) {
    static const std::uint8_t kPng[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    int orientation = 0;
    if (size_bytes >= 3 && data[0] == 0xff && data[1] == 0xd8 && data[2] == 0xff) {
        Image image = decode_jpeg(data, size_bytes, name, orientation);
        return upright(std::move(image), orientation);
    }
    if (size_bytes >= 8 && std::memcmp(data, kPng, 8) == 0) {
        Image image = decode_png(data, size_bytes, name, orientation);
        return upright(std::move(image), orientation);
    }
    if (size_bytes >= 3 && data[0] == 'P' && data[1] == '6') return decode_ppm(data, size_bytes, name);
    fail(name, "is not an image that can be read here: its content is none of JPEG, PNG, PPM (P6). "
               "Convert it to JPEG or PNG.");
}

}  // namespace eak
