#include "cpp/archive/archive.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <caffe2/serialize/inline_container.h>
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <ostream>
#include <streambuf>
#include <vector>

#include "cpp/graph/module.h"
#include "cpp/graph/optimize.h"
#include "hypatia/src/bridge/archive.rs.h"
#include "hypatia/src/bridge/graph.rs.h"

namespace hypatia::bridge {
namespace {

namespace jit = torch::jit;

class Silent : public c10::WarningHandler {
 public:
  void process(const c10::Warning&) override {}
};

// LibTorch's writer throws from its destructor when a write fails, which ends
// the process. This file takes everything and tells afterwards.
class File : public std::streambuf {
 public:
  explicit File(const std::string& path)
      : file_(std::fopen(path.c_str(), "wb")) {}
  ~File() override { finish(); }

  // Whether all of it was written.
  bool finish() {
    if (file_ == nullptr) return false;
    complete_ = std::fclose(file_) == 0 && complete_;
    file_ = nullptr;
    return complete_;
  }

 protected:
  std::streamsize xsputn(const char* bytes, std::streamsize count) override {
    const auto size = static_cast<size_t>(count);
    complete_ = complete_ && file_ != nullptr &&
                std::fwrite(bytes, 1, size, file_) == size;
    return count;
  }
  int_type overflow(int_type byte) override {
    const char one = traits_type::to_char_type(byte);
    xsputn(&one, 1);
    return traits_type::not_eof(byte);
  }

 private:
  std::FILE* file_;
  bool complete_ = true;
};

}  // namespace

void silence() {
  static Silent silent;
  c10::WarningUtils::set_warning_handler(&silent);
  std::set_terminate([] { std::abort(); });
}

void open_library(rust::Str path) {
  const std::string name(path);
  if (dlopen(name.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    throw std::runtime_error(dlerror());
  }
}

std::unique_ptr<Archive> load_archive(rust::Str path,
                                      const rust::Vec<rust::String>& extra) {
  auto archive = std::make_unique<Archive>();
  for (const auto& name : extra) archive->extra.emplace(std::string(name), "");
  archive->module = jit::load(std::string(path), std::nullopt, archive->extra);
  return archive;
}

rust::Vec<uint8_t> archive_record(rust::Str path, rust::Str name) {
  caffe2::serialize::PyTorchStreamReader reader{std::string(path)};
  const auto [data, size] = reader.getRecord(std::string(name));
  rust::Vec<uint8_t> bytes;
  bytes.reserve(size);
  const auto* first = static_cast<const uint8_t*>(data.get());
  std::copy(first, first + size, std::back_inserter(bytes));
  return bytes;
}

Options archive_options(const Archive& archive) {
  return graph::options_for(archive.module);
}

std::unique_ptr<Archive> optimize_archive(const Archive& archive,
                                          const rust::Vec<Input>& inputs,
                                          Session& session) {
  graph::Example example;
  for (const auto& input : inputs) {
    c10::IValue value;
    if (input.kind == InputKind::Tensor) {
      const std::vector<int64_t> shape(input.shape.begin(), input.shape.end());
      const auto dtype = static_cast<c10::ScalarType>(input.dtype);
      value = at::empty(shape, at::device(at::kMeta).dtype(dtype));
    }
    example.push_back(std::move(value));
  }
  return std::make_unique<Archive>(
      Archive{optimized(archive.module, example, session), archive.extra});
}

void save_archive(const Archive& archive, rust::Str path) {
  // A stream, because a file's name would become part of what is in it.
  File file{std::string(path)};
  std::ostream stream(&file);
  archive.module.save(stream, archive.extra);
  TORCH_CHECK(file.finish(), "no room for all of it");
}

}  // namespace hypatia::bridge
