#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace eak {

/// A JSON document. Small on purpose: common JSON libraries allocate while they free a document, and end the process
/// where memory has run out.
class Json {
public:
    enum class Kind : std::uint8_t { null, boolean, whole, real, text, list, object };

    /// Parse RFC 8259 JSON in valid UTF-8 of at most 32 levels, no key twice in an object.
    /// Throws KitError(EAK_ERR_MODEL) with `name` and the place.
    static Json parse(const std::string &text, const std::string &name);

    Kind kind() const { return kind_; }
    bool is_number() const { return kind_ == Kind::whole || kind_ == Kind::real; }
    std::int64_t whole() const { return value_.whole; }
    double number() const { return kind_ == Kind::whole ? double(value_.whole) : value_.real; }
    const std::string &text() const { return rest_->text; }
    const std::vector<Json> &items() const { return rest_->items; }      ///< Of a list, or an object's values.
    const std::vector<std::string> &keys() const { return rest_->keys; }
    /// The value of a key; null if there is none.
    const Json *find(const char *key) const;
    /// As in messages: a scalar as it is written, else "a list" or "an object".
    std::string describe() const;

private:
    struct Rest {
        std::string text;
        std::vector<Json> items;
        std::vector<std::string> keys;
    };
    class Parser;

    Kind kind_ = Kind::null;
    union {
        std::int64_t whole;
        double real;
    } value_ = {0};
    std::unique_ptr<Rest> rest_;
};

}  // namespace eak
