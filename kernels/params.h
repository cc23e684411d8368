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

// One layer of fused_mlp. A chunk is 64 bytes of K. n is padded to whole chunks
// of the next layer's K (to 8 in the last layer) and cut into tiles of 8
// columns; a block computes groups of 1 << shift tiles.
struct MlpLayer {
  const void* weight;  // [n, k], rows `ld` elements apart
  const void* bias;    // [n] or null
  int n;
  int k;  // n of the layer before
  int ld;
  unsigned short chunks;
  unsigned short tiles;
  unsigned short groups;
  unsigned short shift;
  int dense;  // rows start on 16 bytes
};
static_assert(sizeof(MlpLayer) == 40, "launch/params.rs says 40");

constexpr int kMlpLayers = 16;

struct MlpParams {
  const void* input;  // [rows, layer[0].k], rows `input_ld` elements apart
  void* output;       // [rows, n of the last], rows `output_ld` apart
  int rows;
  int layers;
  int input_ld;
  int output_ld;
  int relu_last;
  int input_dense;  // rows start on 16 bytes
  int slots;        // of the ring, 3 (or as many as are filled) to 32
  int act_bytes;    // one of the two activation buffers, multiple of 128
  MlpLayer layer[kMlpLayers];
};
static_assert(sizeof(MlpParams) == 688, "launch/params.rs says 688");

// One product of fp32_gemm.cu; its tensor map of `left` is a parameter of its
// own.
struct Fp32GemmParams {
  const void* image;      // of right
  const float* bias;      // [m] or null
  float* d;               // or null
  void* image_out;        // of d, or null
  const float* left;      // for what is not finite
  float* partial;         // of splits of k
  unsigned int* tickets;  // [tiles, 2], zero before and after
  long long left_row;     // elements from one row of left to the next
  long long left_k;       // elements from one k of left to the next
  long long d_col;        // elements from one column of d to the next
  int m;
  int n;
  int k;
  int relu;
  int row_tiles;  // of 128, rounded up to whole clusters
  int col_tiles;
  int splits;  // of k; each has some
  int early;   // left is there before the kernel in front ends
  int parts;   // of k, one a block of a cluster; 1: they share columns
  int reserved;
};
static_assert(sizeof(Fp32GemmParams) == 120, "launch/params.rs says 120");

struct Fp32PackParams {
  const float* right;    // [k, n], strides below
  void* image;           // of it
  long long k_stride;    // elements
  long long col_stride;  // elements
  int k;
  int n;
};
static_assert(sizeof(Fp32PackParams) == 40, "launch/params.rs says 40");

struct PadRowsParams {
  const void* from;      // [from_rows, cols]
  void* to;              // [rows, ld]
  long long row_stride;  // of from, elements
  int rows;
  int from_rows;
  int cols;
  int ld;  // whole packets of 16 bytes; on the way back cols
};
static_assert(sizeof(PadRowsParams) == 40, "launch/params.rs says 40");

struct Fp32ReluBackwardParams {
  const float* grad;      // [rows, cols], element strides below
  const float* output;    // [rows, cols], dense: what ReLU returned, or null
  void* over_cols;        // image [k = cols, n = rows] or null
  void* over_rows;        // image [k = rows, n = cols] or null
  float* bias_grad;       // [cols] or null
  float* partial;         // [gridDim.y, cols], used if gridDim.y > 1
  unsigned int* tickets;  // [gridDim.x], zero before and after
  long long grad_row_stride;
  long long grad_col_stride;
  long long rows_per_split;  // a multiple of 128
  int rows;
  int cols;
};
static_assert(sizeof(Fp32ReluBackwardParams) == 88, "launch/params.rs says 88");

// One product of tensor_gemm.cu; its three tensor maps are parameters of their
// own.
struct TensorGemmParams {
  const void* bias;  // [n] or null
  void* d;           // [m, n], dense, where `by_map` is 0
  int m;
  int n;
  int k;
  int relu;
  int row_tiles;
  int early;   // right is there before the kernel in front ends
  int by_map;  // d's rows start on 16 bytes
  int reserved;
};
static_assert(sizeof(TensorGemmParams) == 48, "launch/params.rs says 48");

// One layer of tensor_chain.cu.
struct TensorChainLayer {
  const void* bias;  // [n] or null
  int n;
  int k;
  int relu;
  int cols;       // of a tile: 64 or 128
  int col_tiles;  // n / cols, rounded up
  int reserved;
};
static_assert(sizeof(TensorChainLayer) == 32, "launch/params.rs says 32");

// Layers of tensor_chain.cu and cluster_mlp.cu.
constexpr int kChainLayers = 12;
// Counts of one captured launch, and captured launches.
constexpr int kTensorChainCounts = 256, kTensorChainSlots = 2048;

// Its tensor maps are a parameter of their own.
struct TensorChainParams {
  void* d;  // [m, n of the last], dense, where `by_map` is 0
  // [layers - 1, row_tiles] and one more, zero before and after
  unsigned int* done;
  int m;
  int layers;
  int row_tiles;  // of 128
  int by_map;     // d's rows start on 16 bytes
  TensorChainLayer layer[kChainLayers];
};
static_assert(sizeof(TensorChainParams) == 416, "launch/params.rs says 416");

// What cluster_fp32.cu reads again for results that are not finite.
struct ClusterFp32Operands {
  const float* input;                 // rows `input_ld` elements apart
  const float* weight[kChainLayers];  // rows `weight_ld` apart
  int input_ld;
  int weight_ld[kChainLayers];
  int k[kChainLayers];
};
static_assert(sizeof(ClusterFp32Operands) == 208, "launch/params.rs says 208");

// One layer of cluster_mlp.cu and cluster_fp32.cu.
struct ClusterMlpLayer {
  const void* bias;  // [n] or null
  int n;
  int chunks;  // of k, 128 bytes
  int tiles;   // of 64 columns, in cluster_fp32.cu 32
  int relu;
};
static_assert(sizeof(ClusterMlpLayer) == 24, "launch/params.rs says 24");

// Its tensor maps are a parameter of their own.
struct ClusterMlpParams {
  void* d;  // [m, n of the last], dense, where `by_map` is 0
  int m;
  int layers;
  int by_map;      // d's rows start on 16 bytes
  int stages;      // of the ring of weights, at most 12
  int even_bytes;  // of the inputs of layers 0, 2, ...; a multiple of 1024
  int odd_bytes;   // of layers 1, 3, ...; a multiple of 1024
  // Of 128 bytes of k, in `even_bytes`, through which the input goes round: an
  // even number, of two a stage or of all that there are.
  int even_blocks;
  int reserved;
  ClusterMlpLayer layer[kChainLayers];
};
static_assert(sizeof(ClusterMlpParams) == 328, "launch/params.rs says 328");
