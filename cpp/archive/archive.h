// TorchScript files, as hypatia-opt handles them: load, optimize, save, run.
#pragma once

#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>

#include <memory>
#include <string>

#include "rust/cxx.h"

namespace hypatia::bridge {

struct Session;
struct Options;
struct Input;
struct Comparison;

struct Archive {
  torch::jit::Module module;
  // Files that the user packed beside the model; they travel on.
  torch::jit::ExtraFilesMap extra;
};

struct Outputs {
  c10::IValue value;
};

// No texts on stderr but ours: LibTorch's warnings and std::terminate's.
void silence();

// Opens a library that registers operators or classes; it is never closed.
void open_library(rust::Str path);

// `extra` are the names of those files.
std::unique_ptr<Archive> load_archive(rust::Str path,
                                      const rust::Vec<rust::String>& extra);

// One file of the archive, decompressed.
rust::Vec<uint8_t> archive_record(rust::Str path, rust::Str name);

Options archive_options(const Archive& archive);

std::unique_ptr<Archive> optimize_archive(const Archive& archive,
                                          const rust::Vec<Input>& inputs,
                                          Session& session);

void save_archive(const Archive& archive, rust::Str path);

// What forward takes: `path` is the file, where a trace may have left shapes;
// otherwise they are inferred from weights, with this many rows.
rust::Vec<Input> archive_inputs(const Archive& archive, rust::Str path,
                                int64_t rows);

// forward on random values for `inputs`, the same at every call.
std::unique_ptr<Outputs> run_archive(const Archive& archive,
                                     const rust::Vec<Input>& inputs);

// Every tensor and number of two outputs.
rust::Vec<Comparison> compare_outputs(const Outputs& original,
                                      const Outputs& candidate);

}  // namespace hypatia::bridge
