// Kernel parameter blocks. `src/launch/params.rs` states the same structs;
// the sizes and offsets are asserted on both sides.
#pragma once

struct ReluBackwardParams {
  const void* grad;       // [rows, cols], element strides below
  const void* output;     // [rows, cols], dense: what ReLU returned, or null
  void* masked;           // [rows, cols], dense, or null if not wanted
  void* bias_grad;        // [cols], or null if not wanted
  float* partial;         // [gridDim.y, cols], used if gridDim.y > 1
  unsigned int* tickets;  // [gridDim.x], zero before and after each launch
  long long rows;
  long long cols;
  long long grad_row_stride;
  long long grad_col_stride;
  long long rows_per_split;  // rows of one block
};
static_assert(sizeof(ReluBackwardParams) == 88, "launch/params.rs says 88");
