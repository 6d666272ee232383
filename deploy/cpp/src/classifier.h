#pragma once

#include <mutex>
#include <string>

#include "edgeattn_kit.h"
#include "engine.h"
#include "manifest.h"
#include "preprocess.h"

namespace eak {

/// What an eak_classifier handle points to.
class Classifier {
public:
    Classifier(const std::string &folder, int threads, const std::string &cache_dir);

    void predict(const std::uint8_t *rgb, int width, int height, std::size_t stride_bytes, eak_prediction *predictions,
                 std::size_t capacity);
    void self_test(eak_self_test_result &result);
    void bench(const std::uint8_t *rgb, int width, int height, std::size_t stride_bytes, int runs,
               eak_bench_result &result);

    const std::string folder;
    const int threads;
    const Manifest manifest;
    Preprocessor preprocessor;
    Engine engine;
    std::mutex in_use;

private:
    std::vector<int> order_;
};

}  // namespace eak
