#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace eak {

enum class Interpolation { bilinear, bicubic, nearest };

struct Preprocess {
    int size = 0;
    int resize = 0;  ///< Short side after resizing; 0 squashes to size x size.
    Interpolation interpolation = Interpolation::bilinear;
    float mean[3] = {};
    float std[3] = {};
};

struct FileEntry {
    std::string file, sha256;
    std::uint64_t size_bytes = 0;
};

/// model.json, as far as this program needs it.
struct Manifest {
    std::string name;
    FileEntry model, reference;
    std::string input_name, output_name;
    Preprocess preprocess;
    std::vector<std::string> classes;
    float min_confidence = 0.5F;
    std::map<std::string, FileEntry> files;
};

struct ReferenceImage {
    std::string file, sha256, pixels_sha256;
    int label = -1;  ///< -1: not known.
    int top1 = 0;
    std::vector<float> logits;
};

struct Reference {
    float tolerance = 0;
    std::vector<ReferenceImage> images;
};

/// Read and check model.json of a folder. Throws KitError(EAK_ERR_MODEL).
Manifest load_manifest(const std::string &folder);

/// Read the expected outputs, after checking their hash. Throws KitError(EAK_ERR_MODEL).
Reference load_reference(const std::string &folder, const Manifest &manifest);

}  // namespace eak
