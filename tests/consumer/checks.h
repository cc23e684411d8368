// Checks that name themselves and end the program with status 1 when they fail.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

void check(bool ok, const std::string& what);

// Same shape and dtype, values within the dtype's usual distance.
void check_close(const at::Tensor& got, const at::Tensor& expected,
                 const std::string& what);

// `body` throws c10::Error whose text, without a backtrace, is `expected`.
void check_error(const std::function<void()>& body, const std::string& expected,
                 const std::string& what);

// The C ABI on real tensors (capi.cpp).
void check_capi();
