#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "manifest.h"

namespace eak {

/// From 8-bit RGB pixels to the network's input, bit for bit as in training: Pillow's antialiased resize in its
/// fixed-point arithmetic, a crop around the centre, then (x / 255 - mean) / std in float32.
/// Keeps its buffers, so that frames of one size allocate once. Not for several threads at a time.
class Preprocessor {
public:
    explicit Preprocessor(const Preprocess &spec);

    /// Return size x size x 3 bytes, valid until the next call.
    /// Throws KitError(EAK_ERR_IMAGE) for sizes outside of the limits.
    const std::uint8_t *resize_and_crop(const std::uint8_t *rgb, int width, int height, std::size_t stride_bytes);

    /// Write 3 planes of size x size floats.
    void normalize(const std::uint8_t *pixels, float *planes) const;

private:
    static Axis make_axis(int in, int out, int from, int length, Interpolation interpolation);
    static std::vector<int> nearest_axis(int in, int out, int from, int length);
    void plan(int width, int height);
    const std::uint8_t *nearest(const std::uint8_t *rgb, std::size_t stride_bytes);

    Preprocess spec_;
    float table_[3][256];
    int width_ = 0, height_ = 0;                ///< What the plan below is for.
    int new_width_ = 0, new_height_ = 0, left_ = 0, top_ = 0;
    Axis across_, down_;
    std::vector<int> columns_, rows_;
    int row_begin_ = 0, row_end_ = 0;           ///< Input rows that the output depends on.
    std::vector<std::uint8_t> row_, middle_, pixels_;
};

}  // namespace eak
