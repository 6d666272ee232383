#include "classifier.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "error.h"
#include "files.h"
#include "image.h"
#include "sha256.h"

namespace eak {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point from, Clock::time_point to) {
    return std::chrono::duration<double, std::milli>(to - from).count();
}

double percentile(std::vector<double> values, double share) {
    std::sort(values.begin(), values.end());
    return values[std::min(values.size() - 1, std::size_t(share * double(values.size())))];
}

}  // namespace

Classifier::Classifier(const std::string &folder_, int threads_, const std::string &cache_dir)
    : folder(folder_),
      threads(threads_),
      manifest(load_manifest(folder_)),
      preprocessor(manifest.preprocess),
      engine(folder_, manifest, threads_, cache_dir),
      order_(manifest.classes.size()) {}

void Classifier::predict(const std::uint8_t *rgb, int width, int height, std::size_t stride_bytes,
                         eak_prediction *predictions, std::size_t capacity) {
    preprocessor.normalize(preprocessor.resize_and_crop(rgb, width, height, stride_bytes), engine.input());
    engine.infer();
    const float *const logits = engine.output();
    const auto classes = int(order_.size());
    std::iota(order_.begin(), order_.end(), 0);
    const auto count = std::ptrdiff_t(std::min(capacity, order_.size()));
    std::partial_sort(order_.begin(), order_.begin() + std::max<std::ptrdiff_t>(count, 1), order_.end(),
                      [logits](int a, int b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; });
    const float largest = logits[order_[0]];
    double sum = 0;
    for (int i = 0; i < classes; ++i) sum += std::exp(double(logits[i] - largest));
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        const int index = order_[std::size_t(i)];
        predictions[i] = {index, logits[index], float(std::exp(double(logits[index] - largest)) / sum)};
    }
}

void Classifier::self_test(eak_self_test_result &result) {
    const Reference reference = load_reference(folder, manifest);
    result.images = int(reference.images.size());
    result.same_pixels = result.same_top1 = result.correct = 0;
    result.max_logit_difference = 0;
    result.tolerance = reference.tolerance;
    std::string first_wrong;
    bool labelled = false;
    const auto side = std::size_t(manifest.preprocess.size);
    for (const ReferenceImage &expected : reference.images) {
        const FileEntry &file = manifest.files.at(expected.file);
        const std::string bytes =
            read_checked(folder, file.file, file.sha256, file.size_bytes, EAK_MAX_IMAGE_BYTES);
        const Image image = decode_image(reinterpret_cast<const std::uint8_t *>(bytes.data()), bytes.size(), file.file);
        const std::size_t stride = std::size_t(image.width) * 3;
        const auto *pixels = preprocessor.resize_and_crop(image.pixels.data(), image.width, image.height, stride);
        const bool same_pixels = sha256_hex(pixels, side * side * 3) == expected.pixels_sha256;
        eak_prediction best{};
        predict(image.pixels.data(), image.width, image.height, stride, &best, 1);
        float difference = 0;
        for (std::size_t i = 0; i < expected.logits.size(); ++i) {
            const float off = std::fabs(engine.output()[i] - expected.logits[i]);
            difference = off <= difference ? difference : off;  // NaN counts as different
        }
        result.same_pixels += same_pixels;
        result.same_top1 += best.class_index == expected.top1;
        labelled = labelled || expected.label >= 0;
        result.correct += best.class_index == expected.label;
        result.max_logit_difference =
            difference <= result.max_logit_difference ? result.max_logit_difference : difference;
        const bool same = same_pixels && best.class_index == expected.top1 && difference <= reference.tolerance;
        if (!same && first_wrong.empty()) {
            first_wrong = expected.file + (same_pixels ? "" : " has other pixels after resizing;") + " class " +
                          manifest.classes[std::size_t(best.class_index)] + ", expected " +
                          manifest.classes[std::size_t(expected.top1)] + "; logits differ by up to " +
                          std::to_string(difference) + ", allowed are " + std::to_string(reference.tolerance);
        }
    }
    if (!labelled) result.correct = -1;
    if (!first_wrong.empty()) {
        throw KitError(EAK_ERR_SELF_TEST, "The self-test failed, first at " + first_wrong + ".");
    }
}

void Classifier::bench(const std::uint8_t *rgb, int width, int height, std::size_t stride_bytes, int runs,
                       eak_bench_result &result) {
    eak_prediction top[5];
    std::vector<double> engine_ms, frame_ms, overhead;
    engine_ms.reserve(std::size_t(runs)), frame_ms.reserve(std::size_t(runs)), overhead.reserve(std::size_t(runs));
    for (int i = 0; i < 10; ++i) predict(rgb, width, height, stride_bytes, top, 5);
    // In alternation, so that whatever else the machine does hits both alike.
    for (int i = 0; i < runs; ++i) {
        const auto start = Clock::now();
        engine.infer();
        const auto middle = Clock::now();
        predict(rgb, width, height, stride_bytes, top, 5);
        const auto end = Clock::now();
        engine_ms.push_back(milliseconds(start, middle));
        frame_ms.push_back(milliseconds(middle, end));
        overhead.push_back(frame_ms.back() / engine_ms.back() - 1);
    }
    result.runs = runs;
    result.engine_p50_ms = percentile(engine_ms, 0.5), result.engine_p90_ms = percentile(engine_ms, 0.9);
    result.frame_p50_ms = percentile(frame_ms, 0.5), result.frame_p90_ms = percentile(frame_ms, 0.9);
    result.overhead_p50 = percentile(overhead, 0.5);
}

}  // namespace eak
