#include "json.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "error.h"
#include "utf8.h"

namespace eak {

class Json::Parser {
public:
    Parser(const std::string &text, const std::string &name) : text_(text), name_(name) {}

    Json document() {
        Json value = any(0);
        skip_space();
        if (at_ != text_.size()) fail("more after its end");
        return value;
    }

private:
    static constexpr int kMaxDepth = 32;

    [[noreturn]] void fail(const char *what) const {
        throw KitError(EAK_ERR_MODEL,
                       name_ + " is not valid JSON: " + what + " at byte " + std::to_string(at_) + ". Make the kit again.");
    }
    char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
    void skip_space() {
        while (at_ < text_.size() && std::strchr(" \t\r\n", text_[at_]) != nullptr && text_[at_] != '\0') ++at_;
    }
    bool take(char c) {
        skip_space();
        if (peek() != c) return false;
        ++at_;
        return true;
    }
    void word(const char *letters) {
        if (text_.compare(at_, std::strlen(letters), letters) != 0) fail("no value");
        at_ += std::strlen(letters);
    }

    Json any(int depth) {
        if (depth > kMaxDepth) fail("too many levels");
        skip_space();
        Json value;
        switch (peek()) {
        case '{': object(value, depth); break;
        case '[': list(value, depth); break;
        case '"':
            value.kind_ = Kind::text;
            value.rest_ = std::make_unique<Rest>();
            value.rest_->text = string();
            break;
        case 't': word("true"), value.kind_ = Kind::boolean, value.value_.whole = 1; break;
        case 'f': word("false"), value.kind_ = Kind::boolean; break;
        case 'n': word("null"); break;
        default: number(value);
        }
        return value;
    }

    void list(Json &value, int depth) {
        value.kind_ = Kind::list;
        value.rest_ = std::make_unique<Rest>();
        ++at_;
        if (take(']')) return;
        do value.rest_->items.push_back(any(depth + 1));
        while (take(','));
        if (!take(']')) fail("no , or ]");
    }

    void object(Json &value, int depth) {
        value.kind_ = Kind::object;
        value.rest_ = std::make_unique<Rest>();
        ++at_;
        if (take('}')) return;
        do {
            skip_space();
            if (peek() != '"') fail("no key");
            value.rest_->keys.push_back(string());
            if (!take(':')) fail("no :");
            value.rest_->items.push_back(any(depth + 1));
        } while (take(','));
        if (!take('}')) fail("no , or }");
        // Two readers may take different ones of two equal keys.
        auto sorted = value.rest_->keys;
        std::sort(sorted.begin(), sorted.end());
        if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) fail("a key twice in an object");
    }

    void number(Json &value) {
        const std::size_t start = at_;
        const auto digits = [&] {
            const std::size_t first = at_;
            while (peek() >= '0' && peek() <= '9') ++at_;
            return at_ - first;
        };
        if (peek() == '-') ++at_;
        const bool zero = peek() == '0';
        const std::size_t count = digits();
        if (count == 0 || (zero && count > 1)) fail("no value");
        bool real = false;
        if (peek() == '.') {
            ++at_, real = true;
            if (digits() == 0) fail("no digits");
        }
        if (peek() == 'e' || peek() == 'E') {
            ++at_, real = true;
            if (peek() == '+' || peek() == '-') ++at_;
            if (digits() == 0) fail("no digits");
        }
        const char *const first = text_.data() + start, *const last = text_.data() + at_;
        if (!real && std::from_chars(first, last, value.value_.whole).ec == std::errc()) {
            value.kind_ = Kind::whole;
            return;
        }
        value.kind_ = Kind::real;
#if defined(__cpp_lib_to_chars)
        if (std::from_chars(first, last, value.value_.real).ec != std::errc()) fail("a number out of range");
#else
        // Depends on the locale's decimal sign; a program that sets one needs a newer standard library.
        value.value_.real = std::strtod(std::string(first, last).c_str(), nullptr);
#endif
    }

    unsigned hex4() {
        unsigned code = 0;
        if (text_.size() - at_ < 4) fail("a cut \\u");
        const auto result = std::from_chars(text_.data() + at_, text_.data() + at_ + 4, code, 16);
        if (result.ptr != text_.data() + at_ + 4) fail("a wrong \\u");
        at_ += 4;
        return code;
    }

    void escape(std::string &out) {
        static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
        const char c = peek();
        const char *const known = c != '\0' ? std::strchr(from, c) : nullptr;
        ++at_;
        if (known != nullptr) {
            out += to[known - from];
            return;
        }
        if (c != 'u') fail("an unknown escape");
        unsigned code = hex4();
        if (code >= 0xd800 && code < 0xdc00) {
            if (text_.compare(at_, 2, "\\u") != 0) fail("half a character");
            at_ += 2;
            const unsigned low = hex4();
            if (low < 0xdc00 || low > 0xdfff) fail("half a character");
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        } else if (code >= 0xdc00 && code < 0xe000) {
            fail("half a character");
        }
        if (code < 0x80) {
            out += char(code);
        } else if (code < 0x800) {
            out += {char(0xc0 | code >> 6), char(0x80 | (code & 63))};
        } else if (code < 0x10000) {
            out += {char(0xe0 | code >> 12), char(0x80 | (code >> 6 & 63)), char(0x80 | (code & 63))};
        } else {
            out += {char(0xf0 | code >> 18), char(0x80 | (code >> 12 & 63)), char(0x80 | (code >> 6 & 63)),
                    char(0x80 | (code & 63))};
        }
    }

    std::string string() {
        std::string out;
        ++at_;
        while (peek() != '"') {
            if (at_ >= text_.size()) fail("no end of a text");
            if (peek() == '\\') {
                ++at_;
                escape(out);
                continue;
            }
            const std::size_t length = utf8_sequence(text_, at_);
            if (length == 0 || static_cast<unsigned char>(peek()) < 0x20) fail("a byte that is no text");
            out.append(text_, at_, length);
            at_ += length;
        }
        ++at_;
        return out;
    }

    const std::string &text_, &name_;
    std::size_t at_ = 0;
};

Json Json::parse(const std::string &text, const std::string &name) { return Parser(text, name).document(); }

const Json *Json::find(const char *key) const {
    if (kind_ != Kind::object) return nullptr;
    const auto found = std::find(rest_->keys.begin(), rest_->keys.end(), key);
    return found == rest_->keys.end() ? nullptr : &rest_->items[std::size_t(found - rest_->keys.begin())];
}

std::string Json::describe() const {
    char text[40];
    switch (kind_) {
    case Kind::null: return "null";
    case Kind::boolean: return value_.whole != 0 ? "true" : "false";
    case Kind::whole: return std::to_string(value_.whole);
    case Kind::real: std::snprintf(text, sizeof text, "%.9g", value_.real); return text;
    case Kind::text: return "\"" + (rest_->text.size() > 80 ? rest_->text.substr(0, 77) + "..." : rest_->text) + "\"";
    case Kind::list: return "a list";
    case Kind::object: return "an object";
    }
    return {};
}

}  // namespace eak
