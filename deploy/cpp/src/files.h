#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "edgeattn_kit.h"

namespace eak {

/// Read a regular file of 1 to `limit_bytes` bytes.
/// Throws KitError(`status`) if it is missing, no regular file, empty or too large.
std::string read_file(const std::string &path, std::size_t limit_bytes, eak_status status);

/// Whether a path of model.json stays in its folder: plain names without leading dots, forward slashes.
bool is_plain_relative(const std::string &path);

/// Read a file of the model folder after checking that it lies there, also behind links, and is what
/// model.json says. Throws KitError(EAK_ERR_MODEL).
std::string read_checked(const std::string &folder, const std::string &path, const std::string &sha256,
                         std::uint64_t size_bytes, std::size_t limit_bytes);

}  // namespace eak
