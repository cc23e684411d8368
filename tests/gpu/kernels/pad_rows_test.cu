// The copies of kernels/pad_rows.cu without LibTorch around them, for
// compute-sanitizer: both sizes of elements, odd widths, rows with gaps,
// sources that begin anywhere, two copies that overlap, rows of zeros behind
// the source's, and the way back.
//
//   nvcc -std=c++17 -gencode arch=compute_90a,code=sm_90a -I kernels
//   pad_rows_test.cu

#include "harness.h"

#include "pad_rows.cu"

namespace {

struct Case {
  int rows, cols, gap, first;
};

template <typename T, typename Kernel>
int run(Kernel kernel, Kernel back, const Case& c) {
  const int each = 16 / sizeof(T), stride = c.cols + c.gap;
  const int ld = (c.cols + each - 1) / each * each;
  const int rows = c.rows + 3, blocks = (rows * (ld / each) + 255) / 256;
  std::vector<T> host(static_cast<size_t>(c.rows) * stride + c.first);
  for (size_t i = 0; i < host.size(); i++) host[i] = T(i * 40503u + 1);
  // What is behind the last column of the last row is nobody's.
  host.resize(host.size() - c.gap);
  const Buffer from(host), first(blocks * 4096), second(blocks * 4096);
  const T* data = static_cast<const T*>(from.data) + c.first;
  cudaLaunchAttribute overlaps[1] = {};
  overlaps[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlaps[0].val.programmaticStreamSerializationAllowed = 1;
  for (const Buffer* to : {&first, &second}) {
    const PadRowsParams p{data, to->data, stride, rows, c.rows, c.cols, ld};
    cudaLaunchConfig_t config = {};
    config.gridDim = {unsigned(blocks), 1, 1}, config.blockDim = {256, 1, 1};
    config.attrs = overlaps, config.numAttrs = to == &second;
    check(cudaLaunchKernelEx(&config, kernel, p), "pad_rows");
  }
  // What lies without gaps is as large as it is.
  const Buffer dense(static_cast<size_t>(c.rows) * c.cols * sizeof(T));
  const PadRowsParams p{first.data, dense.data, ld,    c.rows,
                        c.rows,     c.cols,     c.cols};
  back<<<(c.rows * c.cols + each * 256 - 1) / (each * 256), 256>>>(p);
  check(cudaDeviceSynchronize(), "pad_rows");
  int wrong = 0;
  const std::vector<T> got = dense.read<T>();
  for (int i = 0; i < c.rows * c.cols; i++) {
    const size_t row = i / c.cols, col = i % c.cols;
    wrong += got[i] != host[row * stride + c.first + col];
  }
  for (const Buffer* to : {&first, &second}) {
    const std::vector<T> got = to->read<T>();
    for (int r = 0; r < rows; r++) {
      for (int i = 0; i < ld; i++) {
        const size_t at = static_cast<size_t>(r) * stride + c.first + i;
        wrong += got[static_cast<size_t>(r) * ld + i] !=
                 (r < c.rows && i < c.cols ? host[at] : T(0));
      }
    }
  }
  if (wrong) {
    std::printf("%zu bytes, %d x %d, gap %d, from %d: %d wrong\n", sizeof(T),
                c.rows, c.cols, c.gap, c.first, wrong);
  }
  return wrong != 0;
}

}  // namespace

int main() {
  int failed = 0, ran = 0;
  for (const Case& c :
       {Case{1, 1, 0, 0}, Case{3, 479, 0, 0}, Case{300, 13, 0, 1},
        Case{65, 63, 3, 0}, Case{129, 8, 0, 1}, Case{7, 1000, 1, 3}}) {
    failed += run<unsigned short>(pad_rows_2, unpad_rows_2, c);
    failed += run<unsigned int>(pad_rows_4, unpad_rows_4, c);
    ran += 2;
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return failed != 0;
}
