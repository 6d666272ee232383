#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "error.h"
#include "sha256.h"

namespace eak {
namespace {

struct Descriptor {
    int number;
    ~Descriptor() {
        if (number >= 0) ::close(number);
    }
};

std::string resolved(const std::string &path) {
    struct Free {
        void operator()(char *text) const { std::free(text); }
    };
    const std::unique_ptr<char, Free> text(::realpath(path.c_str(), nullptr));
    if (!text) {
        if (errno == ENOMEM) throw std::bad_alloc();
        throw KitError(EAK_ERR_MODEL, path + " cannot be opened: " + std::strerror(errno) +
                                          ". Name the model folder of a kit, or make the kit again.");
    }
    return text.get();
}

}  // namespace

std::string read_file(const std::string &path, std::size_t limit_bytes, eak_status status) {
    // O_NONBLOCK: opening a pipe that nobody writes to must not wait for ever.
    const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
    struct stat about {};
    if (file.number < 0 || ::fstat(file.number, &about) != 0) {
        throw KitError(status, path + " cannot be opened: " + std::strerror(errno) + ". Check the path.");
    }
    if (!S_ISREG(about.st_mode)) {
        throw KitError(status, path + " is not a regular file. Name a file.");
    }
    if (about.st_size == 0) {
        throw KitError(status, path + " is empty (0 bytes). Replace it.");
    }
    if (std::uint64_t(about.st_size) > limit_bytes) {
        throw KitError(status, path + " has " + std::to_string(about.st_size) + " bytes; the limit is " +
                                   std::to_string(limit_bytes) + ". Use a smaller file.");
    }
    std::string content(std::size_t(about.st_size), '\0');
    std::size_t done = 0;
    while (done < content.size()) {
        const ssize_t got = ::read(file.number, &content[done], content.size() - done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            throw KitError(status, path + " cannot be read: " + (got < 0 ? std::strerror(errno) : "it became shorter") +
                                       ". Try again.");
        }
        done += std::size_t(got);
    }
    return content;
}

bool is_plain_relative(const std::string &path) {
    if (path.empty() || path.size() > 200) return false;
    bool at_start = true;
    for (const char c : path) {
        const bool word = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
        if (at_start ? !word : !(word || c == '.' || c == '-' || c == '/')) return false;
        at_start = c == '/';
    }
    return !at_start;
}

std::string read_checked(const std::string &folder, const std::string &path, const std::string &sha256,
                         std::uint64_t size_bytes, std::size_t limit_bytes) {
    if (!is_plain_relative(path)) {
        throw KitError(EAK_ERR_MODEL, "model.json names the file \"" + path.substr(0, 200) +
                                          "\", which may lead out of its folder. Make the kit again.");
    }
    const std::string base = resolved(folder), target = resolved(folder + "/" + path);
    const std::string prefix = base == "/" ? base : base + "/";
    if (target.compare(0, prefix.size(), prefix) != 0) {
        throw KitError(EAK_ERR_MODEL, folder + "/" + path + " is a link that leads out of the folder. "
                                          "Replace it by the file itself.");
    }
    std::string content = read_file(target, limit_bytes, EAK_ERR_MODEL);
    const std::string got = content.size() == size_bytes ? sha256_hex(content.data(), content.size()) : std::string();
    if (got != sha256) {
        throw KitError(EAK_ERR_MODEL, folder + "/" + path + " is not the file that model.json lists: " +
                                          std::to_string(content.size()) + " bytes" +
                                          (got.empty() ? "" : ", SHA-256 " + got.substr(0, 12) + "...") + " instead of " +
                                          std::to_string(size_bytes) + " bytes, " + sha256.substr(0, 12) +
                                          "... Make the kit again.");
    }
    return content;
}

}  // namespace eak
