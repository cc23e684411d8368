// The kernels of kernels/relu_backward.cu without LibTorch around them, for
// compute-sanitizer: its racecheck fails inside a PyTorch process ("failed to
// handle a hardware exception"), and its initcheck does not see what cuBLASLt
// writes by TMA. Launches every variant over shapes, splits and strides, and
// compares with fp64 on the host.
//
//   nvcc -std=c++17 -arch=native -I kernels relu_backward_test.cu && ./a.out

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "relu_backward.cu"

namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  std::printf("%s: %s\n", what, cudaGetErrorString(status));
  std::exit(1);
}

struct Buffer {
  explicit Buffer(size_t bytes) { check(cudaMalloc(&data, bytes), "malloc"); }
  ~Buffer() { cudaFree(data); }
  Buffer(const Buffer&) = delete;
  void* data = nullptr;
};

float value(long long i) {  // deterministic, both signs, some exact zeros
  const unsigned int h = static_cast<unsigned int>(i) * 2654435761u >> 7;
  return h % 17 == 0 ? 0.0f : static_cast<float>(h % 1000) / 250.0f - 2.0f;
}

struct Case {
  long long rows, cols, row_stride, col_stride, splits;
  bool masked, bias_grad;
};

template <typename T, typename Kernel>
int run(const char* name, Kernel kernel, int strip, const Case& c) {
  const long long n = c.rows * c.cols;
  const long long span =
      (c.rows - 1) * c.row_stride + (c.cols - 1) * c.col_stride + 1;
  std::vector<T> grad(span), output(n), masked(n), bias(c.cols);
  for (long long i = 0; i < span; ++i) {
    grad[i] = hypatia::from_float<T>(value(i));
  }
  for (long long i = 0; i < n; ++i) {
    output[i] = hypatia::from_float<T>(value(i + 12345));
  }
  if (n > 3) output[3] = hypatia::from_float<T>(NAN);  // lets its gradient pass

  const unsigned int strips = (c.cols + strip - 1) / strip;
  const long long per_split = (c.rows + c.splits - 1) / c.splits;
  const unsigned int splits = (c.rows + per_split - 1) / per_split;
  Buffer g(span * sizeof(T)), y(n * sizeof(T)), z(n * sizeof(T));
  Buffer b(c.cols * sizeof(T)), p(splits * c.cols * sizeof(float));
  Buffer t(strips * sizeof(unsigned int));
  const auto up = cudaMemcpyHostToDevice;
  check(cudaMemcpy(g.data, grad.data(), span * sizeof(T), up), "copy");
  check(cudaMemcpy(y.data, output.data(), n * sizeof(T), up), "copy");
  check(cudaMemset(t.data, 0, strips * sizeof(unsigned int)), "memset");
  const ReluBackwardParams params{g.data,
                                  y.data,
                                  c.masked ? z.data : nullptr,
                                  c.bias_grad ? b.data : nullptr,
                                  static_cast<float*>(p.data),
                                  static_cast<unsigned int*>(t.data),
                                  c.rows,
                                  c.cols,
                                  c.row_stride,
                                  c.col_stride,
                                  per_split};
  for (int again = 0; again < 2; ++again) {  // the tickets must be zero again
    kernel<<<dim3(strips, splits), 256>>>(params);
    check(cudaGetLastError(), name);
  }
  check(cudaDeviceSynchronize(), name);
  const auto down = cudaMemcpyDeviceToHost;
  if (c.masked) {
    check(cudaMemcpy(masked.data(), z.data, n * sizeof(T), down), "copy");
  }
  if (c.bias_grad) {
    check(cudaMemcpy(bias.data(), b.data, c.cols * sizeof(T), down), "copy");
  }

  const double u_out = sizeof(T) == 4   ? std::ldexp(1.0, -24)
                       : sizeof(T) == 2 ? std::ldexp(1.0, -8)
                                        : 0;
  int wrong = 0;
  for (long long col = 0; col < c.cols; ++col) {
    double sum = 0, scale = 0;
    for (long long row = 0; row < c.rows; ++row) {
      const long long i = row * c.cols + col;
      const float dy =
          hypatia::to_float(grad[row * c.row_stride + col * c.col_stride]);
      const float want = hypatia::to_float(output[i]) <= 0 ? 0.0f : dy;
      sum += want;
      scale += std::fabs(want);
      wrong += c.masked && hypatia::to_float(masked[i]) != want;
    }
    const double bound =
        (c.rows + 1) * std::ldexp(1.0, -24) * scale + u_out * std::fabs(sum);
    const double got = hypatia::to_float(bias[col]);
    wrong += c.bias_grad && !(std::fabs(got - sum) <= bound);
  }
  if (wrong != 0) {
    std::printf(
        "%s rows=%lld cols=%lld strides=%lld,%lld splits=%lld: %d wrong\n",
        name, c.rows, c.cols, c.row_stride, c.col_stride, c.splits, wrong);
  }
  return wrong != 0;
}

}  // namespace

int main() {
  int failed = 0, ran = 0;
  const auto all = [&](const Case& c, bool vectorizes) {
    failed += run<float>("f32_any", relu_backward_f32_any, 32, c);
    failed += run<__half>("f16_any", relu_backward_f16_any, 32, c);
    failed += run<__nv_bfloat16>("bf16_any", relu_backward_bf16_any, 32, c);
    ran += 3;
    if (!vectorizes) return;
    failed += run<float>("f32_vec", relu_backward_f32_vec, 32, c);
    failed += run<__half>("f16_vec", relu_backward_f16_vec, 64, c);
    failed += run<__nv_bfloat16>("bf16_vec", relu_backward_bf16_vec, 64, c);
    ran += 3;
  };
  for (const long long rows : {1LL, 33LL, 300LL}) {
    for (const long long cols : {1LL, 10LL, 72LL, 128LL}) {
      for (const long long splits : {1LL, 2LL, 7LL}) {
        if (splits > rows) continue;
        all({rows, cols, cols, 1, splits, true, true}, cols % 8 == 0);
        all({rows, cols, 0, 0, splits, true, true}, false);     // expanded
        all({rows, cols, 1, rows, splits, true, true}, false);  // transposed
      }
      all({rows, cols, cols + 8, 1, 1, true, false}, cols % 8 == 0);
      all({rows, cols, cols, 1, 2 > rows ? 1 : 2, false, true}, cols % 8 == 0);
    }
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return failed != 0;
}
