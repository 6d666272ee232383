// edgeattn_kit.hpp: the C interface with handles that close themselves and exceptions of the caller's own making.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "edgeattn_kit.h"

namespace edgeattn {

/// A failed call. It is thrown by this header, in the caller's program: none crosses the library's boundary.
class Error : public std::runtime_error {
public:
    Error(eak_status status, const std::string &message) : std::runtime_error(message), status_(status) {}
    eak_status status() const noexcept { return status_; }

private:
    eak_status status_;
};

inline void check(eak_status status) {
    if (status != EAK_OK) throw Error(status, eak_last_error());
}

/// Upright 8-bit RGB pixels.
class Image {
public:
    static Image read(const std::string &path) {
        eak_image *handle = nullptr;
        check(eak_image_read(path.c_str(), &handle));
        return Image(handle);
    }
    static Image decode(const std::uint8_t *data, std::size_t size_bytes) {
        eak_image *handle = nullptr;
        check(eak_image_decode(data, size_bytes, &handle));
        return Image(handle);
    }
    int width() const noexcept { return eak_image_width(handle_.get()); }
    int height() const noexcept { return eak_image_height(handle_.get()); }
    const std::uint8_t *pixels() const noexcept { return eak_image_pixels(handle_.get()); }

private:
    struct Free {
        void operator()(eak_image *image) const noexcept { eak_image_free(image); }
    };
    explicit Image(eak_image *handle) : handle_(handle) {}
    std::unique_ptr<eak_image, Free> handle_;
};

/// A loaded model. Movable, not copyable.
class Classifier {
public:
    explicit Classifier(const std::string &model_dir, int threads = 1, const std::string &cache_dir = {}) {
        eak_options options;
        eak_options_init(&options);
        options.threads = threads;
        options.cache_dir = cache_dir.empty() ? nullptr : cache_dir.c_str();
        eak_classifier *handle = nullptr;
        check(eak_open(model_dir.c_str(), &options, &handle));
        handle_.reset(handle);
    }

    eak_model_info info() const {
        eak_model_info result{};
        result.struct_size = sizeof result;
        check(eak_get_info(handle_.get(), &result));
        return result;
    }
    /// Throws if there is no such class.
    std::string class_name(std::size_t index) const {
        const char *name = eak_class_name(handle_.get(), index);
        if (name == nullptr) throw Error(EAK_ERR_ARGUMENT, "There is no class " + std::to_string(index) + ".");
        return name;
    }
    std::vector<eak_prediction> classify(const Image &image, std::size_t top = 5) {
        return classify(image.pixels(), image.width(), image.height(), std::size_t(image.width()) * 3, top);
    }
    std::vector<eak_prediction> classify(const std::uint8_t *rgb, int width, int height, std::size_t stride_bytes,
                                         std::size_t top = 5, float *logits = nullptr) {
        const std::size_t classes = info().class_count;
        std::vector<eak_prediction> found(top < classes ? top : classes);
        std::size_t count = 0;
        check(eak_classify(handle_.get(), rgb, width, height, stride_bytes, found.data(), found.size(), &count,
                           logits));
        found.resize(count);
        return found;
    }
    eak_classifier *get() const noexcept { return handle_.get(); }

private:
    struct Close {
        void operator()(eak_classifier *classifier) const noexcept { eak_close(classifier); }
    };
    std::unique_ptr<eak_classifier, Close> handle_;
};

}  // namespace edgeattn
