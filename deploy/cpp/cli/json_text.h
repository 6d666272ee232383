#pragma once

#include <string>

/// A JSON string with its quotes; bytes that are no UTF-8 become U+FFFD.
std::string json_text(const std::string &text);

/// A number that reads back as the same float.
std::string json_number(double value, int digits = 9);
