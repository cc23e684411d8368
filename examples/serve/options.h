// The command line of serve.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

// A command line that cannot be understood.
struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Options {
  std::string model;
  std::string input;   // empty: random rows
  std::string output;  // empty: stdout
  std::string device = "cpu";
  int64_t rows = -1;
  int64_t cols = -1;
  int64_t batch = 1024;
  bool help = false;
  bool version = false;
};

extern const char* const kUsage;

// Throws UsageError.
Options parse_options(int argc, char** argv);
