#pragma once

#include <string>

namespace eak {

/// Compiled models in a folder, one file for each kind of start. A file is used only if its own hash fits, and if it
/// was made for the same model, OpenVINO, processor and options. Whoever may write to the folder decides what runs,
/// so it belongs to the user alone.
class BlobCache {
public:
    BlobCache() = default;
    BlobCache(const std::string &folder, const std::string &name, const std::string &made_for);
    /// False if there is none, or one that was damaged or made for something else.
    bool load(std::string &blob) const;
    /// Write it whole or not at all; what goes wrong is passed over.
    void save(const std::string &blob) const;

private:
    std::string path_, header_;
};

/// The processor's instruction sets, as the system names them; empty where it does not.
std::string cpu_features();

}  // namespace eak
