// The one exception inside the library. c_api.cpp turns it into a status; it never leaves.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "edgeattn_kit.h"

namespace eak {

class KitError : public std::exception {
public:
    KitError(eak_status status, std::string message) : status_(status), message_(std::move(message)) {}
    const char *what() const noexcept override { return message_.c_str(); }
    eak_status status() const noexcept { return status_; }

private:
    eak_status status_;
    std::string message_;
};

}  // namespace eak
