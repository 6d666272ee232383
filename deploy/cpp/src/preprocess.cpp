#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "error.h"
#include "kernels.h"

namespace eak {
namespace {

double bilinear(double x) {
    x = std::fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

double bicubic(double x) {
    constexpr double a = -0.5;
    x = std::fabs(x);
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

/// round(difference / 2), halves to even.
int centred(int difference) {
    const int half = difference / 2;
    return difference % 2 == 0 ? half : half + (half % 2 != 0);
}

}  // namespace

Preprocessor::Preprocessor(const Preprocess &spec) : spec_(spec) {
    for (int c = 0; c < 3; ++c) {
        for (int value = 0; value < 256; ++value) {
            table_[c][value] = (float(value) / 255.0F - spec.mean[c]) / spec.std[c];
        }
    }
}

Axis Preprocessor::make_axis(int in, int out, int from, int length, Interpolation interpolation) {
    const auto filter = interpolation == Interpolation::bicubic ? bicubic : bilinear;
    const double scale = double(in) / out, stretch = std::max(scale, 1.0);
    const double support = (interpolation == Interpolation::bicubic ? 2.0 : 1.0) * stretch;
    const double inverse = 1.0 / stretch;
    Axis axis;
    axis.taps = int(std::ceil(support)) * 2 + 1;
    const auto taps = std::size_t(axis.taps);
    axis.weights.assign(taps * std::size_t(length), 0);
    axis.first.resize(std::size_t(length));
    axis.count.resize(std::size_t(length));
    std::vector<double> exact(taps);
    for (int i = 0; i < length; ++i) {
        const double centre = (from + i + 0.5) * scale;
        const int first = std::max(0, int(centre - support + 0.5));
        const int count = std::min(in, int(centre + support + 0.5)) - first;
        double sum = 0.0;
        for (int t = 0; t < count; ++t) sum += exact[std::size_t(t)] = filter((t + first - centre + 0.5) * inverse);
        for (int t = 0; t < count; ++t) {
            const double weight = (sum != 0.0 ? exact[std::size_t(t)] / sum : exact[std::size_t(t)]) * (1 << kWeightBits);
            axis.weights[std::size_t(i) * taps + std::size_t(t)] = std::int32_t(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        axis.first[std::size_t(i)] = first;
        axis.count[std::size_t(i)] = count;
    }
    pack_pairs(axis);
    return axis;
}

std::vector<int> Preprocessor::nearest_axis(int in, int out, int from, int length) {
    // Summed up step by step, as Pillow does: multiplying gives other roundings.
    const double step = double(in) / out;
    double at = step * 0.5;
    std::vector<int> result(std::size_t(length), 0);
    for (int i = 0; i < from + length; ++i, at += step) {
        if (i >= from) result[std::size_t(i - from)] = std::min(int(at), in - 1);
    }
    return result;
}

void Preprocessor::plan(int width, int height) {
    const int size = spec_.size;
    std::int64_t new_width = size, new_height = size;
    if (spec_.resize > 0) {
        const std::int64_t shorter = spec_.resize;
        new_width = width <= height ? shorter : std::max(shorter, shorter * width / height);
        new_height = width <= height ? std::max(shorter, shorter * height / width) : shorter;
    }
    // The larger of what the two passes make, as in training.
    if (new_width * std::max<std::int64_t>(height, new_height) > EAK_MAX_IMAGE_PIXELS) {
        throw KitError(EAK_ERR_IMAGE, "An image of " + std::to_string(width) + " x " + std::to_string(height) +
                                          " pixels would become " + std::to_string(new_width) + " x " +
                                          std::to_string(new_height) + ": it is too elongated. Crop it.");
    }
    width_ = height_ = 0;  // no plan, should an allocation fail
    new_width_ = int(new_width), new_height_ = int(new_height);
    left_ = centred(new_width_ - size), top_ = centred(new_height_ - size);
    const auto side = std::size_t(size);
    if (spec_.interpolation == Interpolation::nearest) {
        columns_ = nearest_axis(width, new_width_, left_, size);
        rows_ = nearest_axis(height, new_height_, top_, size);
    } else {
        across_ = make_axis(width, new_width_, left_, size, spec_.interpolation);
        down_ = make_axis(height, new_height_, top_, size, spec_.interpolation);
        row_begin_ = *std::min_element(down_.first.begin(), down_.first.end());
        row_end_ = 0;
        for (std::size_t i = 0; i < side; ++i) row_end_ = std::max(row_end_, down_.first[i] + down_.count[i]);
        row_.assign(std::size_t(width) * 3 + kRowPadding, 0);
        // Rounding to 8 bits between the two passes makes their order matter: across, then down, as in training, whatever
        // the shape. Pillow 13 turns it around for tall images when it is asked for both at once.
        middle_.assign(side * 3 * std::size_t(row_end_ - row_begin_) + kRowPadding, 0);
    }
    pixels_.assign(side * side * 3 + kRowPadding, 0);
    width_ = width, height_ = height;
}

const std::uint8_t *Preprocessor::nearest(const std::uint8_t *rgb, std::size_t stride_bytes) {
    std::uint8_t *out = pixels_.data();
    for (const int y : rows_) {
        for (const int x : columns_) {
            std::memcpy(out, rgb + std::size_t(y) * stride_bytes + std::size_t(x) * 3, 3);
            out += 3;
        }
    }
    return pixels_.data();
}

const std::uint8_t *Preprocessor::resize_and_crop(const std::uint8_t *rgb, int width, int height,
                                                  std::size_t stride_bytes) {
    if (width != width_ || height != height_) plan(width, height);
    if (spec_.interpolation == Interpolation::nearest) return nearest(rgb, stride_bytes);

    const auto side = std::size_t(spec_.size), bytes = side * 3;
    for (int y = row_begin_; y < row_end_; ++y) {
        const std::uint8_t *in = rgb + std::size_t(y) * stride_bytes;
        std::uint8_t *out = middle_.data() + std::size_t(y - row_begin_) * bytes;
        if (new_width_ == width) {
            std::memcpy(out, in + std::size_t(left_) * 3, bytes);
            continue;
        }
        if (y + 1 == height) {  // reading past the caller's last byte is not allowed; another row holds the padding
            std::memcpy(row_.data(), in, std::size_t(width) * 3);
            in = row_.data();
        }
        resample_row(in, across_, out);
    }
    for (std::size_t y = 0; y < side; ++y) {
        std::uint8_t *const out = pixels_.data() + y * bytes;
        if (new_height_ == height) {
            std::memcpy(out, middle_.data() + (std::size_t(top_ - row_begin_) + y) * bytes, bytes);
        } else {
            blend_rows(middle_.data() + std::size_t(down_.first[y] - row_begin_) * bytes, bytes,
                       down_.weights.data() + y * std::size_t(down_.taps), down_.count[y], bytes, out);
        }
    }
    return pixels_.data();
}

void Preprocessor::normalize(const std::uint8_t *pixels, float *planes) const {
    const auto count = std::size_t(spec_.size) * std::size_t(spec_.size);
    float *red = planes, *green = planes + count, *blue = planes + 2 * count;
    for (std::size_t i = 0; i < count; ++i) {
        red[i] = table_[0][pixels[3 * i]];
        green[i] = table_[1][pixels[3 * i + 1]];
        blue[i] = table_[2][pixels[3 * i + 2]];
    }
}

}  // namespace eak
