#include "options.h"

#include <cerrno>
#include <cstdlib>

const char* const kUsage =
    R"(serve MODEL --shape ROWS COLS [options]

Runs a TorchScript model, which may use Hypatia's operators, on ROWS rows of
COLS numbers and prints the predicted class of each, one per line: the place of
the largest value in the model's last dimension.

  --input FILE    raw little-endian float32, row after row (default: random)
  --output FILE   where the classes go (default: standard output); also -o
  --device NAME   cpu, cuda or cuda:N (default: cpu)
  --batch N       rows per call of the model (default: 1024)
  --version       what the loaded Hypatia is
  --help

A summary of the time goes to standard error. Exit status: 0 success, 1 the
work failed, 2 the command line is wrong.
)";

namespace {

int64_t parse_count(const std::string& option, const std::string& text,
                    int64_t least) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != '\0' || errno != 0 || value < least) {
    throw UsageError("expected a whole number of at least " +
                     std::to_string(least) + " for " + option + ", got \"" +
                     text + "\"");
  }
  return value;
}

}  // namespace

Options parse_options(int argc, char** argv) {
  Options options;
  int i = 1;
  const auto value_of = [&](const std::string& option) -> std::string {
    if (++i >= argc) throw UsageError("expected a value after " + option);
    return argv[i];
  };
  for (; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--help" || word == "-h") {
      options.help = true;
    } else if (word == "--version") {
      options.version = true;
    } else if (word == "--input") {
      options.input = value_of(word);
    } else if (word == "--output" || word == "-o") {
      options.output = value_of(word);
    } else if (word == "--device") {
      options.device = value_of(word);
    } else if (word == "--batch") {
      options.batch = parse_count(word, value_of(word), 1);
    } else if (word == "--shape") {
      options.rows = parse_count(word, value_of(word), 0);
      options.cols = parse_count(word, value_of(word), 1);
    } else if (word.size() > 1 && word[0] == '-') {
      throw UsageError("expected one of the options in --help, got " + word);
    } else if (options.model.empty()) {
      options.model = word;
    } else {
      throw UsageError("expected one model, got " + options.model + " and " +
                       word);
    }
  }
  if (options.help || options.version) return options;
  if (options.model.empty()) throw UsageError("expected a model, got none");
  if (options.rows < 0) {
    throw UsageError("expected --shape ROWS COLS, got none");
  }
  return options;
}
