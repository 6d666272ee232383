#include "blob_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "error.h"
#include "files.h"
#include "sha256.h"

namespace eak {
namespace {

constexpr std::size_t kHashLetters = 64;

bool write_all(int file, const std::string &data) {
    std::size_t done = 0;
    while (done < data.size()) {
        const ssize_t got = ::write(file, data.data() + done, data.size() - done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        done += std::size_t(got);
    }
    return true;
}

/// Make a folder and those above it, for this user alone.
void make_folders(const std::string &path) {
    for (std::size_t at = path.find('/', 1); at != std::string::npos; at = path.find('/', at + 1)) {
        ::mkdir(path.substr(0, at).c_str(), 0700);
    }
    ::mkdir(path.c_str(), 0700);
}

}  // namespace

BlobCache::BlobCache(const std::string &folder, const std::string &name, const std::string &made_for)
    : header_("edgeattn kit cache 1 " + sha256_hex(made_for.data(), made_for.size()) + "\n") {
    make_folders(folder);
    path_ = folder + "/" + name + "." + header_.substr(header_.size() - 1 - kHashLetters, 16) + ".blob";
}

bool BlobCache::load(std::string &blob) const {
    std::string content;
    try {
        // Another user's file, or one that others may write to, is not trusted.
        struct stat about {};
        if (::lstat(path_.c_str(), &about) != 0 || !S_ISREG(about.st_mode)) return false;
        if (about.st_uid != ::geteuid() || (about.st_mode & (S_IWGRP | S_IWOTH)) != 0) return false;
        content = read_file(path_, EAK_MAX_MODEL_BYTES, EAK_ERR_RUNTIME);
    } catch (const KitError &) {
        return false;
    }
    const std::size_t start = header_.size() + kHashLetters + 1;
    if (content.size() <= start || content.compare(0, header_.size(), header_) != 0) return false;
    if (sha256_hex(content.data() + start, content.size() - start) != content.substr(header_.size(), kHashLetters)) {
        return false;
    }
    content.erase(0, start);
    blob = std::move(content);
    return true;
}

void BlobCache::save(const std::string &blob) const {
    std::string temporary = path_ + ".XXXXXX";
    const int file = ::mkstemp(&temporary[0]);
    if (file < 0) return;
    const std::string head = header_ + sha256_hex(blob.data(), blob.size()) + "\n";
    const bool written = write_all(file, head) && write_all(file, blob);
    if (::close(file) != 0 || !written || std::rename(temporary.c_str(), path_.c_str()) != 0) {
        ::unlink(temporary.c_str());
    }
}

std::string cpu_features() {
    // x86 calls them flags, ARM Features.
    std::ifstream stream("/proc/cpuinfo");
    std::string line;
    while (std::getline(stream, line)) {
        if (line.compare(0, 5, "flags") == 0 || line.compare(0, 8, "Features") == 0) return line;
    }
    return {};
}

}  // namespace eak
