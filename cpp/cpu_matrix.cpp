#include "cpp/cpu_matrix.h"

#include "cpp/convert.h"

namespace hypatia::cpu_kernels {

bool readable(const at::Tensor& t) {
  return t.is_cpu() && t.layout() == at::kStrided && t.numel() != 0 &&
         address(t) % t.element_size() == 0;
}

bool has_unit_stride(const at::Tensor& t) {
  return t.stride(-1) == 1 || t.size(-1) == 1;
}

bridge::CpuMatrix as_rows(const at::Tensor& t) {
  bridge::CpuMatrix matrix{};
  matrix.data = address(t);
  matrix.k = static_cast<size_t>(t.size(-1));
  matrix.rows = static_cast<size_t>(t.numel()) / matrix.k;
  const bool rows_apart = t.dim() == 2 && t.size(0) > 1;
  matrix.stride = rows_apart ? static_cast<size_t>(t.stride(0)) : matrix.k;
  return matrix;
}

at::Tensor rows_or_copy(const at::Tensor& t) {
  return t.dim() <= 2 && has_unit_stride(t) ? t : t.contiguous();
}

}  // namespace hypatia::cpu_kernels
