#include "manifest.h"

#include <cmath>
#include <limits>

#include "error.h"
#include "files.h"
#include "json.h"

namespace eak {
namespace {

constexpr std::size_t kMaxJsonBytes = std::size_t(16) << 20;
constexpr int kMaxSide = 1024;

/// A value of the document, with the path to it for messages.
class Node {
public:
    Node(const Json &value, std::string where) : value_(value), where_(std::move(where)) {}

    [[noreturn]] void fail(const std::string &expected) const {
        throw KitError(EAK_ERR_MODEL,
                       where_ + " is " + value_.describe() + "; expected " + expected + ". Make the kit again.");
    }
    bool has(const char *key) const { return value_.find(key) != nullptr; }
    Node operator[](const char *key) const {
        object();
        const Json *const found = value_.find(key);
        if (found == nullptr) throw KitError(EAK_ERR_MODEL, where_ + " has no " + key + ". Make the kit again.");
        return Node(*found, where_ + "." + key);
    }
    bool is_null() const { return value_.kind() == Json::Kind::null; }
    std::vector<Node> items() const {
        if (value_.kind() != Json::Kind::list) fail("a list");
        std::vector<Node> nodes;
        nodes.reserve(value_.items().size());
        for (const Json &item : value_.items()) nodes.emplace_back(item, where_ + "[" + std::to_string(nodes.size()) + "]");
        return nodes;
    }
    const Json &object() const {
        if (value_.kind() != Json::Kind::object) fail("an object");
        return value_;
    }
    std::string text(std::size_t least, std::size_t most) const {
        if (value_.kind() != Json::Kind::text) fail("text");
        const std::string &result = value_.text();
        if (result.size() < least || result.size() > most || result.find('\0') != std::string::npos) {
            fail("text of " + std::to_string(least) + " to " + std::to_string(most) + " bytes");
        }
        return result;
    }
    std::int64_t whole(std::int64_t least, std::int64_t most) const {
        if (value_.kind() != Json::Kind::whole || value_.whole() < least || value_.whole() > most) {
            fail("a whole number from " + std::to_string(least) + " to " + std::to_string(most));
        }
        return value_.whole();
    }
    float number() const {
        if (!value_.is_number()) fail("a number");
        if (!(std::fabs(value_.number()) <= double(std::numeric_limits<float>::max()))) fail("a finite number");
        return float(value_.number());
    }
    std::string sha256() const {
        auto result = text(64, 64);
        if (result.find_first_not_of("0123456789abcdef") != std::string::npos) fail("a SHA-256 in lower-case hexadecimal");
        return result;
    }
    std::string path() const {
        auto result = text(1, 200);
        if (!is_plain_relative(result)) fail("a file's path inside the folder");
        return result;
    }

private:
    const Json &value_;
    std::string where_;
};

FileEntry entry(const Node &node, std::string file) {
    FileEntry result;
    result.file = std::move(file);
    result.sha256 = node["sha256"].sha256();
    result.size_bytes = std::uint64_t(node["size_bytes"].whole(1, std::int64_t(1) << 31));
    return result;
}

std::string tensor(const Node &node, const std::vector<std::int64_t> &shape) {
    const auto sides = node["shape"].items();
    bool same = sides.size() == shape.size();
    for (std::size_t i = 0; same && i < sides.size(); ++i) same = sides[i].whole(1, 1 << 20) == shape[i];
    if (!same) node["shape"].fail("the shape that size and classes imply");
    return node["name"].text(1, 200);
}

Preprocess preprocess(const Node &node) {
    Preprocess result;
    result.size = int(node["size"].whole(8, kMaxSide));
    if (node.has("resize") && !node["resize"].is_null()) result.resize = int(node["resize"].whole(result.size, 2048));
    const auto kind = node["interpolation"].text(1, 20);
    if (kind == "bilinear") result.interpolation = Interpolation::bilinear;
    else if (kind == "bicubic") result.interpolation = Interpolation::bicubic;
    else if (kind == "nearest") result.interpolation = Interpolation::nearest;
    else node["interpolation"].fail("bilinear, bicubic or nearest");
    const auto mean = node["mean"].items(), std = node["std"].items();
    if (mean.size() != 3) node["mean"].fail("three numbers");
    if (std.size() != 3) node["std"].fail("three numbers");
    for (int c = 0; c < 3; ++c) {
        result.mean[c] = mean[std::size_t(c)].number();
        result.std[c] = std[std::size_t(c)].number();
        if (!(result.std[c] > 0)) std[std::size_t(c)].fail("a positive number");
    }
    return result;
}

}  // namespace

Manifest load_manifest(const std::string &folder) {
    const Json document = Json::parse(read_file(folder + "/model.json", kMaxJsonBytes, EAK_ERR_MODEL), folder + "/model.json");
    const Node root(document, "model.json");
    if (root["schema_version"].whole(0, 1 << 30) != 1) {
        root["schema_version"].fail("1, the only version that this program knows");
    }
    Manifest result;
    result.name = root["name"].text(1, 80);
    result.preprocess = preprocess(root["preprocess"]);
    for (const Node &name : root["classes"].items()) result.classes.push_back(name.text(1, 800));
    const std::size_t classes = result.classes.size();
    if (classes < 2 || classes > 100000) root["classes"].fail("2 to 100000 names");
    const Node model = root["model"];
    const std::int64_t side = result.preprocess.size;
    result.input_name = tensor(model["input"], {1, 3, side, side});
    result.output_name = tensor(model["output"], {1, std::int64_t(classes)});
    const Node variant = root["variants"]["openvino"];
    result.model = entry(variant, variant["file"].path());
    const Node reference = root["reference"];
    result.reference = entry(reference, reference["file"].path());
    result.min_confidence = root["thresholds"]["min_confidence"].number();
    const Node files = root["files"];
    for (std::size_t i = 0; i < files.object().items().size(); ++i) {
        const std::string &path = files.object().keys()[i];
        if (!is_plain_relative(path)) files.fail("paths inside the folder only");
        result.files.emplace(path, entry(Node(files.object().items()[i], "model.json.files." + path), path));
    }
    return result;
}

Reference load_reference(const std::string &folder, const Manifest &manifest) {
    const FileEntry &file = manifest.reference;
    const Json document = Json::parse(read_checked(folder, file.file, file.sha256, file.size_bytes, kMaxJsonBytes), file.file);
    const Node root(document, file.file);
    Reference result;
    result.tolerance = root["tolerance"].number();
    if (!(result.tolerance > 0)) root["tolerance"].fail("a positive number");
    const auto classes = std::int64_t(manifest.classes.size());
    for (const Node &node : root["images"].items()) {
        ReferenceImage image;
        image.file = node["file"].path();
        image.sha256 = node["sha256"].sha256();
        image.pixels_sha256 = node["pixels_sha256"].sha256();
        if (node.has("label") && !node["label"].is_null()) image.label = int(node["label"].whole(0, classes - 1));
        image.top1 = int(node["top1"].whole(0, classes - 1));
        for (const Node &logit : node["logits"].items()) image.logits.push_back(logit.number());
        if (std::int64_t(image.logits.size()) != classes) node["logits"].fail("one number for each class");
        const auto known = manifest.files.find(image.file);
        if (known == manifest.files.end() || known->second.sha256 != image.sha256) {
            node["file"].fail("a file that model.json lists with the same hash");
        }
        result.images.push_back(std::move(image));
    }
    if (result.images.empty()) root["images"].fail("at least one image");
    return result;
}

}  // namespace eak
