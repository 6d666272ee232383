#pragma once

#include <cstddef>
#include <memory>
#include <string>

namespace eak {

struct Manifest;

/// The model in OpenVINO's CPU plugin: one stream, tuned for latency, float32 for what is not INT8.
class Engine {
public:
    /// Check and compile the model, or take it compiled from `cache_dir` (empty: no cache).
    /// Throws KitError: EAK_ERR_MODEL for the file, EAK_ERR_RUNTIME for OpenVINO.
    Engine(const std::string &folder, const Manifest &manifest, int threads, const std::string &cache_dir);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine &operator=(const Engine &) = delete;

    float *input() const;         ///< 3 planes, to be filled before `infer`.
    const float *output() const;  ///< One logit for each class; written by `infer`.
    void infer();                 ///< Throws KitError(EAK_ERR_RUNTIME).
    bool from_cache() const;
    const std::string &runtime() const;

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace eak
