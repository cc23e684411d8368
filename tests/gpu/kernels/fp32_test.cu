// The kernels of kernels/fp32_*.cu without LibTorch around them, for
// compute-sanitizer: two layers forward, the second on the image that the first
// makes, and the gradients of one, over tiles, splits, clusters and odd sizes,
// whose operands are copied into aligned rows first;
// compared with fp64 on the host.
//
//   nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I kernels
//   fp32_test.cu

#include <array>
#include <functional>
#include <tuple>

#include "harness.h"

#include "fp32_gemm.cu"
#include "fp32_pack.cu"
#include "fp32_relu_backward.cu"
#include "pad_rows.cu"

namespace {

int up(int n) { return (n + 127) / 128 * 128; }
size_t image_bytes(int k, int n) {
  return static_cast<size_t>(up(k)) / 32 * up(n) * hypatia::kColumnBytes;
}

// A matrix in device memory, and a copy of it where its rows are not aligned.
struct Aligned {
  Aligned(const Buffer& from, int rows, int cols)
      : rows(rows),
        cols(cols),
        ld((cols + 3) / 4 * 4),
        copy(cols < ld ? sizeof(float) * rows * ld : 16),
        data(cols < ld ? copy.floats() : from.floats()) {
    if (cols == ld) return;
    const PadRowsParams p{from.floats(), data, cols, rows, rows, cols, ld};
    pad_rows_4<<<(rows * (ld / 4) + 255) / 256, 256>>>(p);
    check(cudaGetLastError(), "pad_rows");
  }
  hypatia::TensorMap map(int box_rows) const {
    return boxes(data, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, sizeof(float), cols,
                 rows, 32, box_rows, ld);
  }
  int rows, cols, ld;
  Buffer copy;
  float* data;
};

struct Tiling {
  int cols, splits, parts = 1;
};

// Scratch memory of every product: all within these sizes.
struct Scratch {
  Buffer partial{64 << 20}, tickets{4096 * sizeof(unsigned)};
  Scratch() { check(cudaMemset(tickets.data, 0, tickets.bytes), "memset"); }
};

// `given`, on the left, is [m, k] row-major, or [k, m] for `columns`; d is [n,
// m].
void gemm(const Buffer& given, bool columns, const Buffer& image, int m, int n,
          int k, const Buffer* bias, bool relu, const Buffer* d,
          const Buffer* image_out, Tiling t, const Scratch& scratch) {
  const Aligned left(given, columns ? k : m, columns ? m : k);
  const auto map = left.map(columns ? 32 : 128);
  const int rows = (m + 127) / 128;
  const int blocks = t.parts > 1 ? t.parts : rows > 1 ? 2 : 1;
  const int sharing = t.parts > 1 ? 1 : blocks;
  Fp32GemmParams p{};
  p.image = image.data, p.left = left.data;
  p.bias = bias ? bias->floats() : nullptr, p.d = d ? d->floats() : nullptr;
  p.image_out = image_out ? image_out->data : nullptr;
  p.partial = scratch.partial.floats();
  p.tickets = static_cast<unsigned*>(scratch.tickets.data);
  p.left_row = columns ? 1 : left.ld, p.left_k = columns ? left.ld : 1;
  p.d_col = m;
  p.m = m, p.n = n, p.k = k, p.relu = relu, p.splits = t.splits, p.early = 1;
  p.parts = t.parts, p.row_tiles = (rows + sharing - 1) / sharing * sharing;
  p.col_tiles = (n + t.cols - 1) / t.cols;
  const auto kernel =
      t.cols == 128  ? (columns ? fp32_gemm_columns_128 : fp32_gemm_rows_128)
      : t.cols == 64 ? (columns ? fp32_gemm_columns_64 : fp32_gemm_rows_64)
                     : (columns ? fp32_gemm_columns_32 : fp32_gemm_rows_32);
  const int shared = (221 << 10) + 512;
  check(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
        "attribute");
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {unsigned(blocks), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  const int units = p.row_tiles / sharing * p.col_tiles * t.splits;
  cudaLaunchConfig_t config = {};
  // Several each, where they can.
  const int clusters = t.parts > 1 ? units : std::min(units, 5);
  config.gridDim = {unsigned(clusters * blocks), 1, 1};
  config.blockDim = {384, 1, 1};
  config.dynamicSmemBytes = shared;
  config.attrs = attributes, config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, map, p), "fp32_gemm");
}

void pack(const Buffer& right, const Buffer& image, int k, int n,
          long long k_stride, long long col_stride) {
  const Fp32PackParams p{right.floats(), image.data, k_stride,
                         col_stride,     k,          n};
  fp32_pack_rows<<<dim3(up(n) / 64, (k + 31) / 32), 256>>>(p);
  check(cudaGetLastError(), "fp32_pack");
}

// `got` [rows, cols] against want(r, c) -> sum and sum of magnitudes.
int wrong(const char* what, const Matrix& got, int rows, int cols, int terms,
          const std::function<void(int, int, double&, double&)>& want) {
  int count = 0;
  for (int r = 0; r < rows; r++) {
    for (int c = 0; c < cols; c++) {
      double sum = 0, scale = 0;
      want(r, c, sum, scale);
      const double bound = std::ldexp(8 * std::sqrt(terms + 1.0), -24) * scale;
      const double value = got[static_cast<size_t>(r) * cols + c];
      count += !(std::fabs(value - sum) <= bound + 1e-30);
    }
  }
  if (count)
    std::printf("%s %d x %d x %d: %d wrong\n", what, rows, cols, terms, count);
  return count != 0;
}

int forward(int rows, int k, int hidden, int n, Tiling t) {
  const Scratch scratch;
  const Matrix hx = numbers(rows, k, 1), hw = numbers(hidden, k, 2);
  const Matrix hb = numbers(1, hidden, 3), hv = numbers(n, hidden, 4);
  const Buffer x(hx), w(hw), b(hb), v(hv);
  const Buffer first(image_bytes(k, rows)), second(image_bytes(hidden, rows));
  const Buffer y(sizeof(float) * rows * hidden), z(sizeof(float) * rows * n);
  for (int again = 0; again < 2; again++) {  // the tickets must be zero again
    pack(x, first, k, rows, 1, k);
    gemm(w, false, first, hidden, rows, k, &b, true, &y, &second, t, scratch);
    gemm(v, false, second, n, rows, hidden, nullptr, false, &z, nullptr, t,
         scratch);
  }
  check(cudaDeviceSynchronize(), "forward");
  const Matrix hy = y.read(), hz = z.read();
  int failed = wrong(
      "hidden", hy, rows, hidden, k, [&](int r, int c, double& s, double& a) {
        s = hb[c], a = std::fabs(s);
        for (int i = 0; i < k; i++) {
          const double product = double(hx[r * k + i]) * hw[c * k + i];
          s += product, a += std::fabs(product);
        }
        s = s > 0 ? s : 0;
      });
  return failed | wrong("output", hz, rows, n, hidden,
                        [&](int r, int c, double& s, double& a) {
                          for (int i = 0; i < hidden; i++) {
                            const double product =
                                double(hy[r * hidden + i]) * hv[c * hidden + i];
                            s += product, a += std::fabs(product);
                          }
                        });
}

int backward(int rows, int k, int n, Tiling t, int splits) {
  const Scratch scratch;
  const Matrix hx = numbers(rows, k, 1), hw = numbers(n, k, 2);
  const Matrix hy = numbers(rows, n, 5), hg = numbers(rows, n, 6);
  const Buffer x(hx), w(hw), y(hy), g(hg);
  const Buffer over_cols(image_bytes(n, rows)), over_rows(image_bytes(rows, n));
  const Buffer dx(sizeof(float) * rows * k), dw(sizeof(float) * n * k),
      db(sizeof(float) * n);
  const int per_split = (up(rows) / 128 + splits - 1) / splits * 128;
  const Fp32ReluBackwardParams p{g.floats(),
                                 y.floats(),
                                 over_cols.data,
                                 over_rows.data,
                                 db.floats(),
                                 scratch.partial.floats(),
                                 static_cast<unsigned*>(scratch.tickets.data),
                                 n,
                                 1,
                                 per_split,
                                 rows,
                                 n};
  for (int again = 0; again < 2; again++) {
    fp32_relu_backward<<<
        dim3((n + 31) / 32, (up(rows) + per_split - 1) / per_split), 256>>>(p);
    check(cudaGetLastError(), "fp32_relu_backward");
    gemm(w, true, over_cols, k, rows, n, nullptr, false, &dx, nullptr, t,
         scratch);
    gemm(x, true, over_rows, k, n, rows, nullptr, false, &dw, nullptr, t,
         scratch);
  }
  check(cudaDeviceSynchronize(), "backward");
  const auto dz = [&](int r, int c) {
    return hy[r * n + c] <= 0 ? 0.0 : double(hg[r * n + c]);
  };
  const auto add = [](double product, double& s, double& a) {
    s += product, a += std::fabs(product);
  };
  int failed = wrong("dx", dx.read(), rows, k, n,
                     [&](int r, int c, double& s, double& a) {
                       for (int i = 0; i < n; i++)
                         add(dz(r, i) * hw[i * k + c], s, a);
                     });
  failed |= wrong("dw", dw.read(), n, k, rows,
                  [&](int r, int c, double& s, double& a) {
                    for (int i = 0; i < rows; i++)
                      add(dz(i, r) * hx[i * k + c], s, a);
                  });
  return failed | wrong("db", db.read(), 1, n, rows,
                        [&](int, int c, double& s, double& a) {
                          for (int i = 0; i < rows; i++) add(dz(i, c), s, a);
                        });
}

}  // namespace

int main() {
  int failed = 0, ran = 0;
  for (const Tiling t : {Tiling{128, 1}, Tiling{128, 2}, Tiling{64, 1},
                         Tiling{64, 3}, Tiling{32, 2}}) {
    for (const auto& [rows, k, hidden, n] :
         {std::array{70, 100, 132, 7}, std::array{130, 128, 260, 129},
          std::array{1, 96, 128, 300}, std::array{97, 101, 131, 33}}) {
      failed += forward(rows, k, hidden, n, t);
      failed += backward(rows < 96 ? rows + 96 : rows, k, hidden, t, t.splits);
      ran += 2;
    }
  }
  for (const auto& [rows, k, hidden, n, t] :
       {std::tuple{130, 128, 260, 129, Tiling{64, 1, 4}},
        std::tuple{130, 128, 260, 129, Tiling{32, 1, 4}},
        std::tuple{290, 300, 264, 40, Tiling{64, 1, 8}}}) {
    failed += forward(rows, k, hidden, n, t);
    failed += backward(rows, k, hidden, t, 2);
    ran += 2;
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return failed != 0;
}
