// edgeattn-classify: images in, classes out.

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include "edgeattn_kit.hpp"
#include "heap.h"
#include "json_text.h"

namespace {

constexpr char kUsage[] =
    "usage: edgeattn-classify --model DIR [options] IMAGE...\n"
    "\n"
    "  --model DIR    the kit's model folder (default: model)\n"
    "  --top K        how many classes to print (default 5)\n"
    "  --json         print one JSON document\n"
    "  --logits       with --json: every logit, and the SHA-256 of the pixels that the model saw\n"
    "  --threads N    inference threads (default 1)\n"
    "  --cache DIR    keep the model there as compiled for this processor: later starts take a fifth of the time\n"
    "                 (default: $XDG_CACHE_HOME/edgeattn-kit or ~/.cache/edgeattn-kit)\n"
    "  --no-cache     compile at each start, and write nothing\n"
    "  --self-test    compare with the kit's own photographs and expected outputs\n"
    "  --bench N      time N inferences and N frames on the first image\n"
    "  --help, --version\n"
    "\n"
    "examples:\n"
    "  edgeattn-classify --model model model/images/0001.jpg\n"
    "  edgeattn-classify --model model --json photo.jpg\n"
    "  edgeattn-classify --model model --self-test\n"
    "  edgeattn-classify --model model --bench 200 model/images/0001.jpg\n"
    "\n"
    "exit codes: 0 done; 1 a mistake in the program; 2 usage; 3 the model folder; 4 an image (the others were\n"
    "classified); 5 OpenVINO; 6 out of memory; 7 the self-test found a difference\n";

/// Where a user's caches lie; empty where the environment does not say.
std::string usual_cache() {
    const char *const own = std::getenv("XDG_CACHE_HOME");
    if (own != nullptr && *own == '/') return std::string(own) + "/edgeattn-kit";
    const char *const home = std::getenv("HOME");
    return home != nullptr && *home == '/' ? std::string(home) + "/.cache/edgeattn-kit" : std::string();
}

struct Options {
    std::string model = "model", cache = usual_cache();
    std::vector<std::string> images;
    int top = 5, threads = 1, bench = 0;
    bool json = false, logits = false, self_test = false;
};

[[noreturn]] void usage_error(const std::string &message) {
    throw edgeattn::Error(EAK_ERR_ARGUMENT, message + " See edgeattn-classify --help.");
}

int whole_number(const std::string &name, const char *text, long least, long most) {
    char *end = nullptr;
    errno = 0;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < least || value > most) {
        usage_error(name + " is " + text + "; expected a whole number from " + std::to_string(least) + " to " +
                    std::to_string(most) + ".");
    }
    return int(value);
}

Options parse(int argc, char **argv) {
    Options options;
    bool only_images = false;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        const auto value = [&]() -> const char * {
            if (i + 1 >= argc) usage_error(argument + " needs a value.");
            return argv[++i];
        };
        if (only_images || argument.empty() || argument[0] != '-') options.images.push_back(argument);
        else if (argument == "--") only_images = true;
        else if (argument == "--model") options.model = value();
        else if (argument == "--cache") options.cache = value();
        else if (argument == "--no-cache") options.cache.clear();
        else if (argument == "--top") options.top = whole_number(argument, value(), 1, 100000);
        else if (argument == "--threads") options.threads = whole_number(argument, value(), 1, 256);
        else if (argument == "--bench") options.bench = whole_number(argument, value(), 1, 1000000);
        else if (argument == "--json") options.json = true;
        else if (argument == "--logits") options.logits = true;
        else if (argument == "--self-test") options.self_test = true;
        else usage_error("Unknown option " + argument + ".");
    }
    if (options.images.empty() && !options.self_test) usage_error("Name an image, or take --self-test.");
    if (options.bench > 0 && options.images.empty()) usage_error("--bench needs an image.");
    return options;
}

std::string number(double value) { return json_number(value); }

/// Classify one image; returns its JSON object, or prints text.
std::string classify(edgeattn::Classifier &classifier, const Options &options, const std::string &path) {
    const auto image = edgeattn::Image::read(path);
    const auto info = classifier.info();
    const std::size_t stride = std::size_t(image.width()) * 3;
    std::vector<float> logits(info.class_count);
    const auto found = classifier.classify(image.pixels(), image.width(), image.height(), stride,
                                           std::size_t(options.top), logits.data());
    const bool confident = found.front().probability >= info.min_confidence;
    if (!options.json) {
        std::printf("%s:%s\n", path.c_str(), confident ? "" : " not sure");
        for (const auto &one : found) {
            std::printf("  %5.1f %%  %s\n", 100 * double(one.probability),
                        classifier.class_name(std::size_t(one.class_index)).c_str());
        }
        return {};
    }
    std::string text = "{\"image\":" + json_text(path) + ",\"confident\":" + (confident ? "true" : "false") + ",\"top\":[";
    for (const auto &one : found) {
        text += std::string(&one == &found.front() ? "" : ",") +
                "{\"class\":" + json_text(classifier.class_name(std::size_t(one.class_index))) +
                ",\"index\":" + std::to_string(one.class_index) + ",\"probability\":" + number(double(one.probability)) +
                ",\"logit\":" + number(double(one.logit)) + "}";
    }
    text += "]";
    if (options.logits) {
        const auto side = std::size_t(info.input_size);
        std::vector<std::uint8_t> pixels(side * side * 3);
        edgeattn::check(eak_preprocess(classifier.get(), image.pixels(), image.width(), image.height(), stride,
                                       pixels.data(), pixels.size()));
        char hash[65];
        edgeattn::check(eak_sha256(pixels.data(), pixels.size(), hash));
        text += ",\"pixels_sha256\":\"" + std::string(hash) + "\",\"logits\":[";
        for (std::size_t i = 0; i < logits.size(); ++i) text += (i > 0 ? "," : "") + number(double(logits[i]));
        text += "]";
    }
    return text + "}";
}

std::string self_test(edgeattn::Classifier &classifier, const Options &options, eak_status &status) {
    eak_self_test_result result{};
    result.struct_size = sizeof result;
    status = eak_self_test(classifier.get(), &result);
    if (status != EAK_OK && status != EAK_ERR_SELF_TEST) edgeattn::check(status);
    const bool passed = status == EAK_OK;
    if (!options.json) {
        const std::string right = result.correct < 0 ? "" : ", " + std::to_string(result.correct) + " right";
        std::printf("self-test %s: %d photographs, %d with the expected pixels, %d with the expected class%s; "
                    "logits differ by at most %g (allowed: %g)\n",
                    passed ? "passed" : "FAILED", result.images, result.same_pixels, result.same_top1, right.c_str(),
                    double(result.max_logit_difference), double(result.tolerance));
        return {};
    }
    return "\"self_test\":{\"passed\":" + std::string(passed ? "true" : "false") +
           ",\"images\":" + std::to_string(result.images) + ",\"same_pixels\":" + std::to_string(result.same_pixels) +
           ",\"same_top1\":" + std::to_string(result.same_top1) + ",\"correct\":" + std::to_string(result.correct) +
           ",\"max_logit_difference\":" + number(double(result.max_logit_difference)) +
           ",\"tolerance\":" + number(double(result.tolerance)) + "}";
}

std::string bench(edgeattn::Classifier &classifier, const Options &options) {
    const auto image = edgeattn::Image::read(options.images.front());
    eak_bench_result result{};
    result.struct_size = sizeof result;
    edgeattn::check(eak_bench(classifier.get(), image.pixels(), image.width(), image.height(),
                              std::size_t(image.width()) * 3, options.bench, &result));
    if (!options.json) {
        std::printf("%d x %d pixels, %d runs of each in alternation: engine p50 %.3f ms, p90 %.3f ms; frame p50 %.3f ms, "
                    "p90 %.3f ms; a frame takes %.1f %% more\n",
                    image.width(), image.height(), result.runs, result.engine_p50_ms, result.engine_p90_ms,
                    result.frame_p50_ms, result.frame_p90_ms, 100 * result.overhead_p50);
        return {};
    }
    return "\"bench\":{\"runs\":" + std::to_string(result.runs) + ",\"engine_p50_ms\":" + number(result.engine_p50_ms) +
           ",\"engine_p90_ms\":" + number(result.engine_p90_ms) + ",\"frame_p50_ms\":" + number(result.frame_p50_ms) +
           ",\"frame_p90_ms\":" + number(result.frame_p90_ms) + ",\"overhead_p50\":" + number(result.overhead_p50) + "}";
}

void complain(const char *message) { std::fprintf(stderr, "edgeattn-classify: %s\n", message); }

int run(const Options &options) {
    edgeattn::Classifier classifier(options.model, options.threads, options.cache);
    const auto info = classifier.info();
    eak_status status = EAK_OK, self_test_status = EAK_OK;
    std::string results, more;
    for (const std::string &path : options.images) {
        // One bad image does not keep the others from being classified.
        try {
            const std::string text = classify(classifier, options, path);
            if (!text.empty()) results += (results.empty() ? "" : ",\n  ") + text;
        } catch (const edgeattn::Error &error) {
            if (error.status() != EAK_ERR_IMAGE) throw;
            complain(error.what());
            status = EAK_ERR_IMAGE;
            if (options.json) {
                results += std::string(results.empty() ? "" : ",\n  ") + "{\"image\":" + json_text(path) +
                           ",\"error\":" + json_text(error.what()) + "}";
            }
        }
    }
    if (options.self_test) {
        more += ",\n " + self_test(classifier, options, self_test_status);
        if (self_test_status != EAK_OK) complain(eak_last_error());
    }
    if (options.bench > 0 && status == EAK_OK) more += ",\n " + bench(classifier, options);
    if (options.json) {
        std::printf("{\"model\":%s,\"runtime\":%s,\"threads\":%d,\"from_cache\":%s,\n \"images\":[%s]%s}\n",
                    json_text(info.name).c_str(), json_text(info.runtime).c_str(), info.threads,
                    info.from_cache != 0 ? "true" : "false", results.c_str(), more.c_str());
    }
    if (std::fflush(stdout) != 0) {
        complain("the output cannot be written.");
        return EAK_ERR_INTERNAL;
    }
    const int code = self_test_status != EAK_OK ? self_test_status : status;
#ifndef __SANITIZE_ADDRESS__
    // The system takes everything back at once; piece by piece it would take a tenth of the run.
    std::_Exit(code);
#endif
    return code;
}

}  // namespace

int main(int argc, char **argv) {
    for (int i = 1; i < argc; ++i) {
        if (std::strcmp(argv[i], "--") == 0) break;
        if (std::strcmp(argv[i], "--help") == 0) return std::fputs(kUsage, stdout) < 0;
        if (std::strcmp(argv[i], "--version") == 0) return std::printf("edgeattn-classify 1.0\n") < 0;
    }
    prepare_heap();
    try {
        return run(parse(argc, argv));
    } catch (const edgeattn::Error &error) {
        complain(error.what());
        return error.status();
    } catch (const std::bad_alloc &) {
        complain("Out of memory.");
        return EAK_ERR_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        complain(error.what());
        return EAK_ERR_INTERNAL;
    }
}
