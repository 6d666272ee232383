#include "engine.h"

#include <algorithm>
#include <new>
#include <istream>
#include <sstream>
#include <streambuf>
#include <thread>

#include <sys/mman.h>

#include <openvino/openvino.hpp>

#include "blob_cache.h"
#include "error.h"
#include "files.h"
#include "manifest.h"
#include "sha256.h"

namespace eak {
namespace {

constexpr char kDevice[] = "CPU";

/// OpenVINO's text on one line: it writes paragraphs with file names of its own source.
std::string one_line(const char *text) {
    std::istringstream words(text);
    std::string line, word;
    while (words >> word && line.size() < 300) line += (line.empty() ? "" : " ") + word;
    return line;
}

/// A stream's view of bytes in memory; a string stream would copy them.
class Memory : public std::streambuf {
public:
    explicit Memory(std::string &bytes) { setg(&bytes[0], &bytes[0], &bytes[0] + bytes.size()); }

private:
    pos_type seekoff(off_type offset, std::ios_base::seekdir from, std::ios_base::openmode) override {
        const off_type start = from == std::ios_base::cur   ? gptr() - eback()
                               : from == std::ios_base::end ? egptr() - eback()
                                                            : 0;
        return seekpos(pos_type(start + offset), std::ios_base::in);
    }
    pos_type seekpos(pos_type position, std::ios_base::openmode) override {
        const off_type at = position;
        if (at < 0 || at > egptr() - eback()) return pos_type(off_type(-1));
        setg(eback(), eback() + at, egptr());
        return position;
    }
};

/// Run a step and turn OpenVINO's exceptions into ours.
template <class Step>
auto guarded(const char *what, eak_status status, const Step &step) -> decltype(step()) {
    try {
        return step();
    } catch (const KitError &) {
        throw;
    } catch (const std::bad_alloc &) {
        throw;
    } catch (const std::exception &error) {
        // Its frontends put a failed allocation into the text of another error.
        if (std::strstr(error.what(), "std::bad_alloc") != nullptr) throw std::bad_alloc();
        throw KitError(status, std::string(what) + ": " + one_line(error.what()) + ".");
    }
}

/// Refuse to start where the process may not map what OpenVINO's start takes: its plugins and a compilation (a peak of
/// 222 MiB was measured with a model of 1.2 MB on two cores), and a stack for a thread of oneTBB on every core. Beyond
/// that point a failed allocation of theirs is a segmentation fault, which nobody can catch.
/// @throws KitError with EAK_ERR_OUT_OF_MEMORY.
void require_memory(std::size_t model_bytes) {
    const std::size_t mebibytes = 240 + std::size_t(8) * std::thread::hardware_concurrency();
    const std::size_t needed = (mebibytes << 20) + 8 * model_bytes;
    void *room = mmap(nullptr, needed, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room == MAP_FAILED) {
        throw KitError(EAK_ERR_OUT_OF_MEMORY,
                       "Out of memory: OpenVINO may need " + std::to_string(needed >> 20) +
                           " MiB of address space, and this process may not map that much more. Raise its limit "
                           "(ulimit -v), or close other programs.");
    }
    munmap(room, needed);
}

ov::AnyMap options(int threads) {
    // The same as edgeattn's target openvino-cpu, so that logits are the same bits.
    return {
#if defined(__aarch64__)
            // Low-precision transformations would compute many layers in float16 there, slowly.
            {"LP_TRANSFORMS_MODE", "NO"},
#endif
            {ov::hint::inference_precision.name(), ov::element::f32},
            {ov::hint::performance_mode.name(), ov::hint::PerformanceMode::LATENCY},
            {ov::num_streams.name(), ov::streams::Num(1)},
            {ov::inference_num_threads.name(), threads}};
}

}  // namespace

struct Engine::State {
    ov::Core core;
    ov::CompiledModel model;
    ov::InferRequest request;
    ov::Tensor input, output;
    std::string runtime;
    bool from_cache = false;

    void compile(const std::string &onnx, const ov::AnyMap &config) {
        const auto network = guarded("OpenVINO cannot read the model", EAK_ERR_MODEL, [&] {
            // The text may hold any format that OpenVINO reads; ONNX carries its weights along.
            return core.read_model(onnx, ov::Tensor());
        });
        model = guarded("OpenVINO cannot compile the model", EAK_ERR_RUNTIME,
                        [&] { return core.compile_model(network, kDevice, config); });
    }

    bool import(const BlobCache &cache, const ov::AnyMap &config) {
        std::string blob;
        if (!cache.load(blob)) return false;
        try {
            Memory memory(blob);
            std::istream stream(&memory);
            model = core.import_model(stream, kDevice, config);
        } catch (const std::bad_alloc &) {
            throw;
        } catch (const std::exception &) {
            return false;  // made again, and replaced
        }
        return true;
    }

    void store(const BlobCache &cache) {
        // A start without a cache is only slower, so what goes wrong here is no error.
        try {
            std::ostringstream stream;
            model.export_model(stream);
            cache.save(stream.str());
        } catch (const std::bad_alloc &) {
            throw;
        } catch (const std::exception &) {
        }
    }

    ov::Tensor checked(const ov::Tensor &tensor, const ov::Shape &shape, const char *what) {
        if (tensor.get_element_type() != ov::element::f32 || tensor.get_shape() != shape) {
            throw KitError(EAK_ERR_MODEL, std::string("The model's ") + what + " is " +
                                              tensor.get_element_type().get_type_name() + " " +
                                              tensor.get_shape().to_string() + ", not what model.json says. "
                                              "Make the kit again.");
        }
        return tensor;
    }
};

Engine::Engine(const std::string &folder, const Manifest &manifest, int threads, const std::string &cache_dir) {
    const FileEntry &file = manifest.model;
    const std::string onnx = read_checked(folder, file.file, file.sha256, file.size_bytes, EAK_MAX_MODEL_BYTES);
    require_memory(onnx.size());
    state_ = guarded("OpenVINO does not start", EAK_ERR_RUNTIME, [] { return std::make_unique<State>(); });
    const auto config = options(threads);
    const std::string build = ov::get_openvino_version().buildNumber;
    state_->runtime = "OpenVINO " + build;
    BlobCache cache;
    if (!cache_dir.empty()) {
        const auto device = guarded("OpenVINO has no CPU plugin", EAK_ERR_RUNTIME, [&] {
            std::string text = state_->core.get_property(kDevice, ov::device::full_name);
            for (const auto &ability : state_->core.get_property(kDevice, ov::device::capabilities)) text += " " + ability;
            return text;
        });
        cache = BlobCache(cache_dir, manifest.name, file.sha256 + "\n" + build + "\n" + device + "\n" + cpu_features() +
                                                        "\nthreads " + std::to_string(threads) + " f32 latency, low precision but on ARM");
        state_->from_cache = state_->import(cache, config);
    }
    if (!state_->from_cache) state_->compile(onnx, config);
    guarded("OpenVINO cannot prepare the model", EAK_ERR_RUNTIME, [&] {
        if (!cache_dir.empty() && !state_->from_cache) state_->store(cache);
        state_->request = state_->model.create_infer_request();
        const auto side = std::size_t(manifest.preprocess.size);
        state_->input = state_->checked(state_->request.get_tensor(manifest.input_name), {1, 3, side, side}, "input");
        state_->output =
            state_->checked(state_->request.get_tensor(manifest.output_name), {1, manifest.classes.size()}, "output");
        return 0;
    });
}

Engine::~Engine() = default;

float *Engine::input() const { return state_->input.data<float>(); }
const float *Engine::output() const { return state_->output.data<const float>(); }

void Engine::infer() {
    guarded("OpenVINO failed", EAK_ERR_RUNTIME, [&] {
        state_->request.infer();
        return 0;
    });
}

bool Engine::from_cache() const { return state_->from_cache; }
const std::string &Engine::runtime() const { return state_->runtime; }

}  // namespace eak
