//! Kernel parameter blocks, field for field those of `kernels/params.h`.

use crate::plan::{small_mlp, tensor_chain};

/// See `kernels/params.h`. Device addresses as integers: nothing on this side
/// follows them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct ReluBackwardParams {
    /// `[rows, cols]`, element strides below.
    pub grad: u64,
    /// `[rows, cols]`, dense, or 0.
    pub output: u64,
    /// `[rows, cols]`, dense, or 0.
    pub masked: u64,
    /// `[cols]`, or 0.
    pub bias_grad: u64,
    /// `[splits, cols]` fp32.
    pub partial: u64,
    /// `[strips]`, zero before and after each launch.
    pub tickets: u64,
    /// Rows of the gradient.
    pub rows: i64,
    /// Columns of the gradient.
    pub cols: i64,
    /// Elements from one row of `grad` to the next.
    pub grad_row_stride: i64,
    /// Elements from one column of `grad` to the next.
    pub grad_col_stride: i64,
    /// Rows of one block.
    pub rows_per_split: i64,
}

const _: () = assert!(size_of::<ReluBackwardParams>() == 88, "params.h says 88");

/// Layers of [`MlpParams`], `kMlpLayers` there.
pub const MLP_LAYERS: usize = small_mlp::MAX_LAYERS;

/// One layer of `kernels/fused_mlp.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MlpLayer {
    /// `[n, k]`.
    pub weight: u64,
    /// `[n]`, or 0.
    pub bias: u64,
    /// Columns of the result.
    pub n: i32,
    /// Length of each sum.
    pub k: i32,
    /// Elements from one row of the weight to the next.
    pub ld: i32,
    /// Of K, 64 bytes each.
    pub chunks: u16,
    /// Of 8 columns.
    pub tiles: u16,
    /// Of `1 << shift` tiles.
    pub groups: u16,
    /// See `groups`.
    pub shift: u16,
    /// 1 if the rows of the weight are 16-byte aligned.
    pub dense: i32,
}

const _: () = assert!(size_of::<MlpLayer>() == 40, "params.h says 40");

/// A chain of layers for `kernels/fused_mlp.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct MlpParams {
    /// `[rows, k of the first layer]`.
    pub input: u64,
    /// `[rows, n of the last layer]`.
    pub output: u64,
    /// Rows of both.
    pub rows: i32,
    /// Of `layer`, how many count.
    pub layers: i32,
    /// Elements from one row of the input to the next.
    pub input_ld: i32,
    /// Elements from one row of the output to the next.
    pub output_ld: i32,
    /// 1 if the last layer has a ReLU; the others always have.
    pub relu_last: i32,
    /// 1 if the rows of the input are 16-byte aligned.
    pub input_dense: i32,
    /// Of the ring.
    pub slots: i32,
    /// Of one activation buffer.
    pub act_bytes: i32,
    /// From the first on.
    pub layer: [MlpLayer; MLP_LAYERS],
}

const _: () = assert!(size_of::<MlpParams>() == 688, "params.h says 688");

/// What `cuTensorMapEncodeTiled` writes; `TensorMap` of `kernels/common`.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Default)]
pub struct TensorMap {
    /// Its meaning is the driver's.
    pub words: [u64; 16],
}

/// One product of `kernels/fp32_gemm.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Fp32GemmParams {
    /// Image of the right operand.
    pub image: u64,
    /// `[m]`, or 0.
    pub bias: u64,
    /// `[m, n]` with unit stride along its columns, or 0.
    pub d: u64,
    /// Where its image goes, or 0.
    pub image_out: u64,
    /// The left operand, for what is not finite.
    pub left: u64,
    /// Sums of the splits.
    pub partial: u64,
    /// Two a tile, zero before and after.
    pub tickets: u64,
    /// Elements from one row of the left operand to the next.
    pub left_row: i64,
    /// Elements from one k of the left operand to the next.
    pub left_k: i64,
    /// Elements from one column of `d` to the next.
    pub d_col: i64,
    /// Rows of `d`.
    pub m: i32,
    /// Columns of `d`.
    pub n: i32,
    /// Length of each sum.
    pub k: i32,
    /// 1 if a ReLU follows.
    pub relu: i32,
    /// Of 128 rows, rounded up to whole clusters.
    pub row_tiles: i32,
    /// Of as many columns as the kernel's name says.
    pub col_tiles: i32,
    /// Of k.
    pub splits: i32,
    /// 1 if the left operand is there before the kernel in front ends.
    pub early: i32,
    /// Of k, one a block of a cluster; 1 where they share columns.
    pub parts: i32,
    /// 0.
    pub reserved: i32,
}

const _: () = assert!(size_of::<Fp32GemmParams>() == 120, "params.h says 120");

/// See `kernels/fp32_pack.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Fp32PackParams {
    /// `[k, n]`, strides below.
    pub right: u64,
    /// Where its image goes.
    pub image: u64,
    /// Elements from one k to the next.
    pub k_stride: i64,
    /// Elements from one column to the next.
    pub col_stride: i64,
    /// Rows.
    pub k: i32,
    /// Columns.
    pub n: i32,
}

const _: () = assert!(size_of::<Fp32PackParams>() == 40, "params.h says 40");

/// See `kernels/pad_rows.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct PadRowsParams {
    /// `[rows, cols]`.
    pub from: u64,
    /// `[rows, ld]`.
    pub to: u64,
    /// Elements from one row of `from` to the next.
    pub row_stride: i64,
    /// Of `to`.
    pub rows: i32,
    /// Of `from`.
    pub from_rows: i32,
    /// Columns.
    pub cols: i32,
    /// Elements from one row of `to` to the next.
    pub ld: i32,
}

const _: () = assert!(size_of::<PadRowsParams>() == 40, "params.h says 40");

/// See `kernels/fp32_relu_backward.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Fp32ReluBackwardParams {
    /// `[rows, cols]`, element strides below.
    pub grad: u64,
    /// `[rows, cols]`, dense, or 0.
    pub output: u64,
    /// Image for products that sum over columns, or 0.
    pub over_cols: u64,
    /// Image for products that sum over rows, or 0.
    pub over_rows: u64,
    /// `[cols]`, or 0.
    pub bias_grad: u64,
    /// `[splits, cols]` fp32.
    pub partial: u64,
    /// `[strips]`, zero before and after each launch.
    pub tickets: u64,
    /// Elements from one row of `grad` to the next.
    pub grad_row_stride: i64,
    /// Elements from one column of `grad` to the next.
    pub grad_col_stride: i64,
    /// Rows of one block, a multiple of 128.
    pub rows_per_split: i64,
    /// Rows of the gradient.
    pub rows: i32,
    /// Columns of the gradient.
    pub cols: i32,
}

const _: () = assert!(size_of::<Fp32ReluBackwardParams>() == 88, "params.h says 88");

/// One product of `kernels/tensor_gemm.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct TensorGemmParams {
    /// `[n]`, or 0.
    pub bias: u64,
    /// `[m, n]`, dense, where `by_map` is 0.
    pub d: u64,
    /// Rows of `d`.
    pub m: i32,
    /// Columns of `d`.
    pub n: i32,
    /// Length of each sum.
    pub k: i32,
    /// 1 if a ReLU follows.
    pub relu: i32,
    /// Tiles of rows.
    pub row_tiles: i32,
    /// 1 if the right operand is there before the kernel in front ends.
    pub early: i32,
    /// 1 if the rows of `d` start on 16 bytes.
    pub by_map: i32,
    /// 0.
    pub reserved: i32,
}

const _: () = assert!(size_of::<TensorGemmParams>() == 48, "params.h says 48");

/// Layers of [`TensorChainParams`] and [`ClusterMlpParams`], `kChainLayers` there.
pub const CHAIN_LAYERS: usize = tensor_chain::MAX_LAYERS;

/// Counts of one captured launch, `kTensorChainCounts` there.
pub const CHAIN_COUNTS: usize = 256;
/// Captured launches, `kTensorChainSlots` there.
pub const CHAIN_SLOTS: usize = 2048;

/// One layer of `kernels/tensor_chain.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct TensorChainLayer {
    /// `[n]`, or 0.
    pub bias: u64,
    /// Columns of the result.
    pub n: i32,
    /// Length of each sum.
    pub k: i32,
    /// 1 if a ReLU follows.
    pub relu: i32,
    /// Columns of a tile: 64 or 128.
    pub cols: i32,
    /// `n / cols`, rounded up.
    pub col_tiles: i32,
    /// 0.
    pub reserved: i32,
}

const _: () = assert!(size_of::<TensorChainLayer>() == 32, "params.h says 32");

/// A chain of layers for `kernels/tensor_chain.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct TensorChainParams {
    /// `[m, n of the last layer]`, dense, where `by_map` is 0.
    pub d: u64,
    /// `[layers - 1, row_tiles]` and one more, zero before and after each launch.
    pub done: u64,
    /// Rows of every result.
    pub m: i32,
    /// Of `layer`, how many count.
    pub layers: i32,
    /// Of 128 rows, an even number.
    pub row_tiles: i32,
    /// 1 if the rows of `d` start on 16 bytes.
    pub by_map: i32,
    /// From the first on.
    pub layer: [TensorChainLayer; CHAIN_LAYERS],
}

const _: () = assert!(size_of::<TensorChainParams>() == 416, "params.h says 416");

/// `ChainMaps` of `kernels/common`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct ChainMaps {
    /// Of each layer.
    pub weight: [TensorMap; CHAIN_LAYERS],
    /// The input, then the result of each layer.
    pub activation: [TensorMap; CHAIN_LAYERS + 1],
}

const _: () = assert!(size_of::<ChainMaps>() == 3200, "chain_maps.cuh says 3200");

/// One layer of `kernels/cluster_mlp.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct ClusterMlpLayer {
    /// `[n]`, or 0.
    pub bias: u64,
    /// Columns of the result.
    pub n: i32,
    /// Of k, 128 bytes each.
    pub chunks: i32,
    /// Of 64 columns, in `cluster_fp32.cu` 32.
    pub tiles: i32,
    /// 1 if a ReLU follows.
    pub relu: i32,
}

const _: () = assert!(size_of::<ClusterMlpLayer>() == 24, "params.h says 24");

/// A chain of layers for `kernels/cluster_mlp.cu` and `cluster_fp32.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct ClusterMlpParams {
    /// `[m, n of the last layer]`, dense, where `by_map` is 0.
    pub d: u64,
    /// Rows of every result.
    pub m: i32,
    /// Of `layer`, how many count.
    pub layers: i32,
    /// 1 if the rows of `d` start on 16 bytes.
    pub by_map: i32,
    /// Of the ring of weights.
    pub stages: i32,
    /// Of the inputs of layers 0, 2, ...
    pub even_bytes: i32,
    /// Of the inputs of layers 1, 3, ...
    pub odd_bytes: i32,
    /// In `even_bytes`, through which the input goes round.
    pub even_blocks: i32,
    /// 0.
    pub reserved: i32,
    /// From the first on.
    pub layer: [ClusterMlpLayer; CHAIN_LAYERS],
}

const _: () = assert!(size_of::<ClusterMlpParams>() == 328, "params.h says 328");

/// What `kernels/cluster_fp32.cu` reads again for results that are not finite.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct ClusterFp32Operands {
    /// `[m, k of the first layer]`.
    pub input: u64,
    /// `[n, k]` each.
    pub weight: [u64; CHAIN_LAYERS],
    /// Elements from one row of the input to the next.
    pub input_ld: i32,
    /// Elements from one row of each weight to the next.
    pub weight_ld: [i32; CHAIN_LAYERS],
    /// Length of each layer's sums.
    pub k: [i32; CHAIN_LAYERS],
}

const _: () = assert!(size_of::<ClusterFp32Operands>() == 208, "params.h says 208");

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    const HEADER: &str = include_str!("../../kernels/params.h");

    /// Field names of a struct in the header.
    fn declared(name: &str) -> Vec<&str> {
        let body = HEADER.split(&format!("struct {name} {{")).nth(1).unwrap();
        body.split("};")
            .next()
            .unwrap()
            .lines()
            .filter_map(|line| line.split(';').next().filter(|_| line.contains(';')))
            .map(|declaration| declaration.rsplit([' ', '*']).next().unwrap())
            .map(|field| field.split('[').next().unwrap())
            .collect()
    }

    /// Field names of a struct here: those of its own in its debug output.
    fn fields(value: &impl Debug) -> Vec<String> {
        let (mut depth, mut names, mut text) = (0, vec![], String::new());
        for c in format!("{value:?}").chars() {
            match c {
                '{' | '[' => depth += 1,
                '}' | ']' => depth -= 1,
                ':' if depth == 1 => names.push(text.trim().to_owned()),
                _ => {}
            }
            if matches!(c, '{' | ',') {
                text.clear();
            } else {
                text.push(c);
            }
        }
        names
    }

    /// Field order against the header's text: the sizes alone would not notice
    /// two swapped fields.
    #[test]
    fn fields_match_the_header() {
        let relu = fields(&ReluBackwardParams::default());
        assert_eq!((relu.len(), relu[3].as_str()), (11, "bias_grad"));
        assert_eq!(relu, declared("ReluBackwardParams"));
        assert_eq!(fields(&MlpLayer::default()), declared("MlpLayer"));
        assert_eq!(fields(&MlpParams::default()), declared("MlpParams"));
        assert_eq!(fields(&Fp32GemmParams::default()), declared("Fp32GemmParams"));
        assert_eq!(fields(&Fp32PackParams::default()), declared("Fp32PackParams"));
        assert_eq!(fields(&PadRowsParams::default()), declared("PadRowsParams"));
        assert_eq!(fields(&TensorGemmParams::default()), declared("TensorGemmParams"));
        assert_eq!(fields(&TensorChainLayer::default()), declared("TensorChainLayer"));
        assert_eq!(fields(&TensorChainParams::default()), declared("TensorChainParams"));
        assert_eq!(fields(&ClusterMlpLayer::default()), declared("ClusterMlpLayer"));
        assert_eq!(fields(&ClusterMlpParams::default()), declared("ClusterMlpParams"));
        let operands = fields(&ClusterFp32Operands::default());
        assert_eq!(operands, declared("ClusterFp32Operands"));
        let relu = fields(&Fp32ReluBackwardParams::default());
        assert_eq!(relu, declared("Fp32ReluBackwardParams"));
        assert!(HEADER.contains(&format!("kMlpLayers = {MLP_LAYERS};")));
        assert!(HEADER.contains(&format!("kChainLayers = {CHAIN_LAYERS};")));
        let slots =
            format!("kTensorChainCounts = {CHAIN_COUNTS}, kTensorChainSlots = {CHAIN_SLOTS};");
        assert!(HEADER.contains(&slots));
    }
}
