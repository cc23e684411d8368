#include "checks.h"

#include <ATen/ATen.h>

#include <cstdlib>
#include <iostream>

void check(bool ok, const std::string& what) {
  if (ok) return;
  std::cout << "consumer: failed: " << what << std::endl;
  std::exit(1);
}

void check_close(const at::Tensor& got, const at::Tensor& expected,
                 const std::string& what) {
  check(got.defined() && expected.defined(), what + ": both are tensors");
  check(got.sizes() == expected.sizes(), what + ": shape");
  check(got.scalar_type() == expected.scalar_type(), what + ": dtype");
  const bool wide = got.scalar_type() == at::kDouble;
  const bool narrow = got.scalar_type() == at::kBFloat16;
  const double tolerance = wide ? 1e-10 : narrow ? 2e-2 : 2e-3;
  check(at::allclose(got.to(at::kDouble), expected.to(at::kDouble), tolerance,
                     tolerance),
        what + ": values");
}

void check_error(const std::function<void()>& body, const std::string& expected,
                 const std::string& what) {
  std::string got = "no error";
  try {
    body();
  } catch (const c10::Error& error) {
    got = error.what_without_backtrace();
  }
  check(got == expected,
        what + ": expected \"" + expected + "\", got \"" + got + "\"");
}
