// serve: a TorchScript model in a C++ program. Linking Hypatia is all it takes
// for the model to find Hypatia's operators.
#include <torch/cuda.h>
#include <torch/script.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <hypatia/hypatia.hpp>
#include <iostream>
#include <stdexcept>
#include <string>

#include "options.h"

namespace {

using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start)
      .count();
}

// Of a text of many lines, the one that says what happened: TorchScript puts
// the error of an operator last, behind a trace of the model's source.
std::string one_line(std::string text) {
  const std::string marker = "RuntimeError: ";
  const auto found = text.rfind("\n" + marker);
  if (found != std::string::npos) {
    text = text.substr(found + 1 + marker.size());
  }
  text.erase(0, text.find_first_not_of(" \n"));
  return text.substr(0, text.find('\n'));
}

std::string one_line(const std::exception& error) {
  const auto* c10_error = dynamic_cast<const c10::Error*>(&error);
  return one_line(c10_error != nullptr ? c10_error->what_without_backtrace()
                                       : error.what());
}

[[noreturn]] void fail(const std::string& expected, const std::string& got) {
  throw std::runtime_error("expected " + expected + ", got " + got);
}

torch::Device choose_device(const std::string& name) {
  torch::Device device(torch::kCPU);
  try {
    device = torch::Device(name);
  } catch (const c10::Error&) {
    fail("cpu, cuda or cuda:N for --device", name);
  }
  if (!device.is_cpu() && !device.is_cuda()) {
    fail("cpu, cuda or cuda:N for --device", name);
  }
  if (device.is_cuda()) {
    const auto count = static_cast<int>(torch::cuda::device_count());
    if (count == 0) fail("a CUDA device for --device " + name, "none");
    if (device.index() >= count) {
      fail("a CUDA device below " + std::to_string(count), name);
    }
  }
  return device;
}

torch::jit::Module load_model(const std::string& path, torch::Device device) {
  if (!std::filesystem::is_regular_file(path)) {
    fail("a TorchScript file in " + path, "no such file");
  }
  try {
    auto model = torch::jit::load(path, device);
    model.eval();
    return model;
  } catch (const std::exception& error) {
    fail("a TorchScript file in " + path, "\"" + one_line(error) + "\"");
  }
}

// Rows in a row, from a file or at random.
class Source {
 public:
  explicit Source(const Options& options) : cols_(options.cols) {
    torch::manual_seed(0);
    if (options.input.empty()) return;
    const auto& path = options.input;
    if (!std::filesystem::is_regular_file(path)) {
      fail("rows in " + path, "no such file");
    }
    const auto bytes = std::filesystem::file_size(path);
    const auto numbers = bytes / sizeof(float);
    const auto cols = static_cast<uint64_t>(options.cols);
    // Divided, not multiplied: a shape from the command line may overflow.
    if (bytes % sizeof(float) != 0 || numbers % cols != 0 ||
        numbers / cols != static_cast<uint64_t>(options.rows)) {
      fail(std::to_string(options.rows) + " rows of " +
               std::to_string(options.cols) + " float32 in " + path,
           std::to_string(bytes) + " bytes");
    }
    file_.open(path, std::ios::binary);
    if (!file_) fail("a readable file " + path, "one that does not open");
    from_file_ = true;
  }

  torch::Tensor next(int64_t rows) {
    if (!from_file_) return torch::randn({rows, cols_});
    auto batch = torch::empty({rows, cols_});
    file_.read(reinterpret_cast<char*>(batch.data_ptr<float>()),
               static_cast<std::streamsize>(batch.nbytes()));
    if (!file_) fail("the whole input", "an error while reading it");
    return batch;
  }

 private:
  std::ifstream file_;
  bool from_file_ = false;
  int64_t cols_;
};

// The class of each row, on the CPU.
torch::Tensor classify(torch::jit::Module& model, const torch::Tensor& rows,
                       torch::Device device) {
  const auto result = model.forward({rows.to(device)});
  if (!result.isTensor()) {
    fail("a model that returns a tensor", result.tagKind());
  }
  const auto scores = result.toTensor();
  if (scores.dim() != 2 || scores.size(0) != rows.size(0) ||
      scores.size(1) == 0) {
    fail("scores of shape [" + std::to_string(rows.size(0)) + ", classes]",
         c10::str(scores.sizes()));
  }
  return scores.argmax(-1).to(torch::kCPU).contiguous();
}

void serve(const Options& options) {
  const auto device = choose_device(options.device);
  auto model = load_model(options.model, device);
  Source source(options);
  std::ofstream file;
  if (!options.output.empty()) {
    file.open(options.output);
    if (!file) fail("a file to write in " + options.output, "an error");
  }
  std::ostream& out = options.output.empty() ? std::cout : file;

  // Apart from the rest: TorchScript and the GPU prepare themselves then.
  double first = 0;
  double rest = 0;
  int64_t batches = 0;
  const c10::InferenceMode inference;
  for (int64_t done = 0; done < options.rows; ++batches) {
    const auto rows = source.next(std::min(options.batch, options.rows - done));
    const auto start = Clock::now();
    const auto classes = classify(model, rows, device);
    (batches == 0 ? first : rest) += milliseconds_since(start);
    const auto* data = classes.data_ptr<int64_t>();
    for (int64_t i = 0; i < classes.numel(); ++i) out << data[i] << '\n';
    done += rows.size(0);
  }
  out.flush();
  if (!out) fail("to write the classes", "an error");

  std::fprintf(stderr, "serve: %lld rows on %s in %lld batches: first %.3f ms",
               static_cast<long long>(options.rows), device.str().c_str(),
               static_cast<long long>(batches), first);
  if (batches > 1) {
    const auto later = static_cast<double>(options.rows - options.batch);
    std::fprintf(stderr, ", then %.3f ms each (%.0f rows/s)",
                 rest / static_cast<double>(batches - 1), later / rest * 1000);
  }
  std::fputc('\n', stderr);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto options = parse_options(argc, argv);
    if (options.help) {
      std::cout << kUsage;
    } else if (options.version) {
      std::cout << hypatia::build_info() << '\n';
    } else {
      serve(options);
    }
    return 0;
  } catch (const UsageError& error) {
    std::cerr << "serve: " << error.what() << "; see serve --help\n";
    return 2;
  } catch (const std::exception& error) {
    std::cerr << "serve: " << one_line(error) << '\n';
    return 1;
  }
}
