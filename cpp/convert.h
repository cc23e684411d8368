// at::Tensor and LibTorch's streams and switches <-> the bridge's records. The
// only file that knows both sides.
#pragma once

#include <ATen/core/Tensor.h>

#include "hypatia/src/bridge.rs.h"

namespace hypatia {

// A 2-D view of a tensor's memory with a unit stride, and the tensor that
// keeps that memory alive (a copy where the strides did not allow a view).
struct MatrixView {
  at::Tensor owner;
  bridge::Matrix matrix;
};

// [*, K] as [M, K]. Copies if rows are not equally far apart, or if neither
// stride is 1 and `any_strides` is not allowed.
MatrixView as_matrix(const at::Tensor& t, bool any_strides = false);

// Device address of the first element.
size_t address(const at::Tensor& t);

// Device, current stream, dtype and the framework's precision switches;
// nullopt for a dtype that is ATen's (fp64). No workspace yet.
std::optional<bridge::Call> make_call(const at::Tensor& input);

}  // namespace hypatia
