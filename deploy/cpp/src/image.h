#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace eak {

/// Upright 8-bit RGB pixels, rows without gaps.
struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> pixels;
};

/// Decode a JPEG, PNG or PPM file into what Pillow makes of it, bit for bit: EXIF orientation applied, colour
/// profiles ignored, transparency composited on white. Throws KitError(EAK_ERR_IMAGE).
/// `name` is for messages only.
Image decode_image(const std::uint8_t *data, std::size_t size_bytes, const std::string &name);

// Parts of the above, one for each format.

/// Throw unless a width and height are within the limits.
void check_image_size(std::uint64_t width, std::uint64_t height, const std::string &name);

/// Both set `orientation` to the file's (1 to 8), where it has one.
Image decode_jpeg(const std::uint8_t *data, std::size_t size_bytes, const std::string &name, int &orientation);
Image decode_png(const std::uint8_t *data, std::size_t size_bytes, const std::string &name, int &orientation);

/// The orientation in an EXIF block (beginning with its TIFF header); 0 if it has none.
int exif_orientation(const std::uint8_t *data, std::size_t size_bytes);

}  // namespace eak
