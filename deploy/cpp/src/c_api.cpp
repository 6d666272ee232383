// The C boundary: arguments checked, exceptions turned into statuses.
#include "edgeattn_kit.h"

#include <cstring>
#include <new>
#include <system_error>

#include "classifier.h"
#include "error.h"
#include "files.h"
#include "image.h"
#include "sha256.h"

struct eak_classifier : eak::Classifier {
    using Classifier::Classifier;
};

struct eak_image : eak::Image {
    explicit eak_image(eak::Image &&image) : eak::Image(std::move(image)) {}
};

namespace {

// A plain array: saying that memory ran out must not need memory.
thread_local char last_error[1024] = "";

eak_status failed(eak_status status, const char *message) noexcept {
    const std::size_t size = std::strlen(message);
    const std::size_t kept = size < sizeof last_error ? size : sizeof last_error - 1;
    std::memcpy(last_error, message, kept);
    last_error[kept] = '\0';
    return status;
}

template <class Body>
eak_status guarded(const Body &body) noexcept {
    try {
        body();
        return EAK_OK;
    } catch (const eak::KitError &error) {
        return failed(error.status(), error.what());
    } catch (const std::bad_alloc &) {
        return failed(EAK_ERR_OUT_OF_MEMORY, "Out of memory. Close other programs, or use a smaller image.");
    } catch (const std::exception &error) {
        return failed(EAK_ERR_INTERNAL, error.what());
    } catch (...) {
        return failed(EAK_ERR_INTERNAL, "An unknown error.");
    }
}

void require(bool condition, const char *message) {
    if (!condition) throw eak::KitError(EAK_ERR_ARGUMENT, message);
}

void check_pixels(const std::uint8_t *rgb, std::int32_t width, std::int32_t height, std::size_t stride_bytes) {
    require(rgb != nullptr, "rgb is NULL; pass the pixels.");
    eak::check_image_size(width < 0 ? 0 : std::uint64_t(width), height < 0 ? 0 : std::uint64_t(height), "The image");
    require(stride_bytes >= std::size_t(width) * 3, "stride_bytes is less than a row of width * 3 bytes.");
    require(stride_bytes <= SIZE_MAX / std::size_t(height), "stride_bytes is too large.");
}

}  // namespace

extern "C" {

uint32_t eak_abi_version(void) noexcept { return EAK_ABI_VERSION; }
const char *eak_last_error(void) noexcept { return last_error; }

const char *eak_status_name(eak_status status) noexcept {
    switch (status) {
    case EAK_OK: return "ok";
    case EAK_ERR_INTERNAL: return "internal";
    case EAK_ERR_ARGUMENT: return "argument";
    case EAK_ERR_MODEL: return "model";
    case EAK_ERR_IMAGE: return "image";
    case EAK_ERR_RUNTIME: return "runtime";
    case EAK_ERR_OUT_OF_MEMORY: return "out-of-memory";
    case EAK_ERR_SELF_TEST: return "self-test";
    }
    return "unknown";
}

void eak_options_init(eak_options *options) noexcept {
    if (options != nullptr) *options = {sizeof(eak_options), 1, nullptr};
}

eak_status eak_open(const char *model_dir, const eak_options *options, eak_classifier **out) noexcept {
    if (out != nullptr) *out = nullptr;
    return guarded([&] {
        require(out != nullptr && model_dir != nullptr, "model_dir or out is NULL.");
        eak_options chosen;
        eak_options_init(&chosen);
        if (options != nullptr) {
            require(options->struct_size == sizeof(eak_options), "options was not filled by eak_options_init.");
            chosen = *options;
        }
        require(chosen.threads >= 1 && chosen.threads <= 256, "threads must be from 1 to 256.");
        *out = new eak_classifier(model_dir, chosen.threads, chosen.cache_dir != nullptr ? chosen.cache_dir : "");
    });
}

void eak_close(eak_classifier *classifier) noexcept { delete classifier; }

eak_status eak_get_info(const eak_classifier *classifier, eak_model_info *info) noexcept {
    return guarded([&] {
        require(classifier != nullptr && info != nullptr, "classifier or info is NULL.");
        require(info->struct_size == sizeof *info, "info->struct_size is not sizeof(eak_model_info).");
        const eak::Manifest &manifest = classifier->manifest;
        *info = {sizeof *info,          manifest.name.c_str(),   classifier->engine.runtime().c_str(),
                 manifest.classes.size(), manifest.preprocess.size, classifier->threads,
                 manifest.min_confidence, classifier->engine.from_cache()};
    });
}

const char *eak_class_name(const eak_classifier *classifier, size_t class_index) noexcept {
    if (classifier == nullptr || class_index >= classifier->manifest.classes.size()) return nullptr;
    return classifier->manifest.classes[class_index].c_str();
}

eak_status eak_image_read(const char *path, eak_image **out) noexcept {
    if (out != nullptr) *out = nullptr;
    return guarded([&] {
        require(out != nullptr && path != nullptr, "path or out is NULL.");
        const std::string bytes = eak::read_file(path, EAK_MAX_IMAGE_BYTES, EAK_ERR_IMAGE);
        *out = new eak_image(
            eak::decode_image(reinterpret_cast<const std::uint8_t *>(bytes.data()), bytes.size(), path));
    });
}

eak_status eak_image_decode(const uint8_t *data, size_t size_bytes, eak_image **out) noexcept {
    if (out != nullptr) *out = nullptr;
    return guarded([&] {
        require(out != nullptr && data != nullptr, "data or out is NULL.");
        if (size_bytes > EAK_MAX_IMAGE_BYTES) throw eak::KitError(EAK_ERR_IMAGE, "The image is larger than 256 MiB.");
        *out = new eak_image(eak::decode_image(data, size_bytes, "The image"));
    });
}

void eak_image_free(eak_image *image) noexcept { delete image; }
int32_t eak_image_width(const eak_image *image) noexcept { return image != nullptr ? image->width : 0; }
int32_t eak_image_height(const eak_image *image) noexcept { return image != nullptr ? image->height : 0; }
const uint8_t *eak_image_pixels(const eak_image *image) noexcept {
    return image != nullptr ? image->pixels.data() : nullptr;
}

eak_status eak_classify(eak_classifier *classifier, const uint8_t *rgb, int32_t width, int32_t height,
                        size_t stride_bytes, eak_prediction *predictions, size_t capacity, size_t *count,
                        float *logits) noexcept {
    if (count != nullptr) *count = 0;
    return guarded([&] {
        require(classifier != nullptr, "classifier is NULL.");
        require(predictions != nullptr || capacity == 0, "predictions is NULL, but capacity is not 0.");
        check_pixels(rgb, width, height, stride_bytes);
        const std::lock_guard<std::mutex> lock(classifier->in_use);
        classifier->predict(rgb, width, height, stride_bytes, predictions, capacity);
        const std::size_t classes = classifier->manifest.classes.size();
        if (count != nullptr) *count = capacity < classes ? capacity : classes;
        if (logits != nullptr) std::memcpy(logits, classifier->engine.output(), classes * sizeof(float));
    });
}

eak_status eak_preprocess(eak_classifier *classifier, const uint8_t *rgb, int32_t width, int32_t height,
                          size_t stride_bytes, uint8_t *pixels, size_t size_bytes) noexcept {
    return guarded([&] {
        require(classifier != nullptr && pixels != nullptr, "classifier or pixels is NULL.");
        check_pixels(rgb, width, height, stride_bytes);
        const auto side = std::size_t(classifier->manifest.preprocess.size);
        require(size_bytes == side * side * 3, "size_bytes is not input_size * input_size * 3.");
        const std::lock_guard<std::mutex> lock(classifier->in_use);
        std::memcpy(pixels, classifier->preprocessor.resize_and_crop(rgb, width, height, stride_bytes), size_bytes);
    });
}

eak_status eak_self_test(eak_classifier *classifier, eak_self_test_result *result) noexcept {
    return guarded([&] {
        require(classifier != nullptr && result != nullptr, "classifier or result is NULL.");
        require(result->struct_size == sizeof *result, "result->struct_size is not sizeof(eak_self_test_result).");
        const std::lock_guard<std::mutex> lock(classifier->in_use);
        classifier->self_test(*result);
    });
}

eak_status eak_bench(eak_classifier *classifier, const uint8_t *rgb, int32_t width, int32_t height,
                     size_t stride_bytes, int32_t runs, eak_bench_result *result) noexcept {
    return guarded([&] {
        require(classifier != nullptr && result != nullptr, "classifier or result is NULL.");
        require(result->struct_size == sizeof *result, "result->struct_size is not sizeof(eak_bench_result).");
        require(runs >= 1 && runs <= 1000000, "runs must be from 1 to 1000000.");
        check_pixels(rgb, width, height, stride_bytes);
        const std::lock_guard<std::mutex> lock(classifier->in_use);
        classifier->bench(rgb, width, height, stride_bytes, runs, *result);
    });
}

eak_status eak_sha256(const uint8_t *data, size_t size_bytes, char text[65]) noexcept {
    return guarded([&] {
        require((data != nullptr || size_bytes == 0) && text != nullptr, "data or text is NULL.");
        const std::string hex = eak::sha256_hex(data, size_bytes);
        std::memcpy(text, hex.c_str(), 65);
    });
}

}  // extern "C"
