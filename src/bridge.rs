//! The only language boundary: what C++ calls in Rust and Rust in C++. Bodies
//! translate and guard; every decision is in `plan` and `launch`.
// Addresses cross here; each block says who checked them.
#![allow(unsafe_code)]
// cxx's generated items; the declarations below are documented.
#![allow(missing_docs, clippy::missing_safety_doc)]

pub mod archive;
pub mod cpu;
pub mod crash;
pub mod graph;
pub mod module;
pub mod session;

use crate::build_info;
use crate::error::{guarded, Error};
use crate::launch::call::Call;
use crate::launch::{exec, notice};
use crate::launch::{Outcome, Refusal, Scope, Workspace};
use crate::plan::check::{Matrix, Settings};
use crate::plan::layer::{Layer, LayerBackward, Work};
use crate::plan::problem::{Dtype, Math};

#[cxx::bridge(namespace = "hypatia::bridge")]
pub mod ffi {
    /// A strided 2-D matrix in device memory.
    #[derive(Clone, Copy)]
    struct Matrix {
        data: usize,
        rows: i64,
        cols: i64,
        row_stride: i64,
        col_stride: i64,
    }

    /// Element type, as C++ names it.
    enum Dtype {
        F32,
        F16,
        Bf16,
    }

    /// What a call brings besides its matrices.
    struct Call {
        device: i32,
        stream: usize,
        dtype: Dtype,
        allow_tf32: bool,
        allow_fp16_accumulation: bool,
        allow_split_k: bool,
        deterministic: bool,
        workspace: usize,
        workspace_bytes: usize,
        workspace_private: bool,
    }

    /// How a call ended.
    enum Status {
        Done,
        /// Call again with `workspace_bytes` for the stream.
        NeedsStreamWorkspace,
        /// The same, for this call alone; ensure the stream has one as well.
        NeedsTuningWorkspace,
        /// The same, for this call alone.
        NeedsCallWorkspace,
        /// Call again with memory for hidden results: not one launch's work,
        /// or, with `warn`, one that failed for `reason`.
        NeedsHidden,
        /// ATen should answer, for `reason`.
        Refused,
    }

    struct Report {
        status: Status,
        workspace_bytes: usize,
        /// The user should hear of `reason`; with `Done`, of a whole sentence there.
        warn: bool,
        reason: String,
    }

    /// `output = input · weightᵀ + bias`, then ReLU if `relu`; `bias` 0 for none.
    /// `output` 0 in front of the last layer where nobody wants it.
    #[derive(Clone, Copy)]
    struct Layer {
        weight: Matrix,
        bias: usize,
        output: usize,
        relu: bool,
    }

    /// Its backward; 0 for what is not wanted, and for `output` without a ReLU.
    /// `input` counts if `grad_weight` is wanted, `weight` if `grad_input` is.
    #[derive(Clone, Copy)]
    struct LayerBackward {
        input: Matrix,
        weight: Matrix,
        output: usize,
        masked: usize,
        grad_input: usize,
        grad_weight: usize,
        grad_bias: usize,
    }

    extern "Rust" {
        /// The JSON of `hypatia::build_info`.
        fn build_info() -> String;

        /// `layer` on `input`.
        ///
        /// # Safety
        /// Every address is valid on the device for its shape until the
        /// stream has passed the call.
        unsafe fn linear_relu(call: &Call, input: &Matrix, layer: &Layer) -> Result<Report>;

        /// Gradients of `linear_relu`.
        ///
        /// # Safety
        /// As for `linear_relu`.
        unsafe fn linear_relu_backward(
            call: &Call,
            grad_output: &Matrix,
            layer: &LayerBackward,
        ) -> Result<Report>;

        /// `layers` in turn, each on the output of the one before; without
        /// hidden outputs in one launch or not at all.
        ///
        /// # Safety
        /// As for `linear_relu`.
        unsafe fn mlp(call: &Call, input: &Matrix, layers: &[Layer]) -> Result<Report>;

        /// Gradients of `mlp`: `layers` from the last one on, each on the
        /// `grad_input` of the one before.
        ///
        /// # Safety
        /// As for `linear_relu`.
        unsafe fn mlp_backward(
            call: &Call,
            grad_output: &Matrix,
            layers: &[LayerBackward],
        ) -> Result<Report>;
    }

    #[namespace = "at"]
    unsafe extern "C++" {
        include!("cpp/handles.h");

        /// `at::Tensor`, as tch and other bindings hold it.
        type Tensor;
    }

    /// The three gradients; null where not asked for.
    struct Gradients {
        input: UniquePtr<Tensor>,
        weight: UniquePtr<Tensor>,
        bias: UniquePtr<Tensor>,
    }

    unsafe extern "C++" {
        /// Calls `hypatia::fused_linear_relu` through the dispatcher.
        ///
        /// # Safety
        /// `bias` is null or a live `at::Tensor`.
        unsafe fn call_fused_linear_relu(
            input: &Tensor,
            weight: &Tensor,
            bias: *const Tensor,
        ) -> Result<UniquePtr<Tensor>>;

        /// Calls `hypatia::fused_linear_relu_backward` through the dispatcher.
        fn call_fused_linear_relu_backward(
            grad_output: &Tensor,
            input: &Tensor,
            weight: &Tensor,
            output: &Tensor,
            output_mask: [bool; 3],
        ) -> Result<Gradients>;

        /// Calls `hypatia::fused_mlp` through the dispatcher.
        ///
        /// # Safety
        /// `weights` points to `layers` live `at::Tensor`s, `biases` to as many
        /// that are live or null.
        unsafe fn call_fused_mlp(
            input: &Tensor,
            weights: *const *const Tensor,
            biases: *const *const Tensor,
            layers: usize,
            relu_last: bool,
        ) -> Result<UniquePtr<Tensor>>;
    }
}

fn build_info() -> String {
    build_info::json()
}

unsafe fn linear_relu(
    call: &ffi::Call,
    input: &ffi::Matrix,
    layer: &ffi::Layer,
) -> Result<ffi::Report, Error> {
    guarded("fused_linear_relu", || {
        // SAFETY: cpp/cuda.cpp passes tensors it holds, on the device and
        // stream of the call; LibTorch's allocator keeps freed memory to the
        // stream's order.
        Ok(report(unsafe {
            exec::run(call.into(), Work::Forward(input.into(), vec![layer.into()]))
        }))
    })
}

unsafe fn linear_relu_backward(
    call: &ffi::Call,
    grad_output: &ffi::Matrix,
    layer: &ffi::LayerBackward,
) -> Result<ffi::Report, Error> {
    guarded("fused_linear_relu_backward", || {
        // SAFETY: as in `linear_relu`.
        Ok(report(unsafe {
            exec::run(call.into(), Work::Backward(grad_output.into(), vec![layer.into()]))
        }))
    })
}

unsafe fn mlp(
    call: &ffi::Call,
    input: &ffi::Matrix,
    layers: &[ffi::Layer],
) -> Result<ffi::Report, Error> {
    guarded("fused_mlp", || {
        let work = Work::Forward(input.into(), layers.iter().map(Into::into).collect());
        // SAFETY: as in `linear_relu`, of cpp/cuda_mlp.cpp.
        Ok(report(unsafe { exec::run(call.into(), work) }))
    })
}

unsafe fn mlp_backward(
    call: &ffi::Call,
    grad_output: &ffi::Matrix,
    layers: &[ffi::LayerBackward],
) -> Result<ffi::Report, Error> {
    guarded("fused_mlp_backward", || {
        let work = Work::Backward(grad_output.into(), layers.iter().map(Into::into).collect());
        // SAFETY: as in `mlp`.
        Ok(report(unsafe { exec::run(call.into(), work) }))
    })
}

fn report(outcome: Result<Outcome, Refusal>) -> ffi::Report {
    let (status, workspace_bytes, warn, reason) = match outcome {
        Ok(Outcome::Done) => {
            let notice = notice::take();
            (ffi::Status::Done, 0, notice.is_some(), notice.unwrap_or_default())
        }
        Ok(Outcome::NeedsWorkspace { bytes, scope }) => {
            let status = match scope {
                Scope::Stream => ffi::Status::NeedsStreamWorkspace,
                Scope::Tuning => ffi::Status::NeedsTuningWorkspace,
                Scope::Call => ffi::Status::NeedsCallWorkspace,
            };
            (status, bytes, false, String::new())
        }
        Ok(Outcome::NeedsHidden { failed }) => {
            (ffi::Status::NeedsHidden, 0, failed.is_some(), failed.unwrap_or_default())
        }
        Err(Refusal { reason, warn }) => (ffi::Status::Refused, 0, warn, reason),
    };
    ffi::Report { status, workspace_bytes, warn, reason }
}

impl From<&ffi::Matrix> for Matrix {
    fn from(m: &ffi::Matrix) -> Self {
        let ffi::Matrix { data, rows, cols, row_stride, col_stride } = *m;
        Self { data, rows, cols, row_stride, col_stride }
    }
}

impl From<&ffi::Layer> for Layer {
    fn from(layer: &ffi::Layer) -> Self {
        Self {
            weight: (&layer.weight).into(),
            bias: (layer.bias != 0).then_some(layer.bias),
            output: layer.output,
            relu: layer.relu,
        }
    }
}

impl From<&ffi::LayerBackward> for LayerBackward {
    fn from(layer: &ffi::LayerBackward) -> Self {
        let ffi::LayerBackward { output, masked, grad_input, grad_weight, grad_bias, .. } = *layer;
        let (input, weight) = ((&layer.input).into(), (&layer.weight).into());
        Self { input, weight, output, masked, grad_input, grad_weight, grad_bias }
    }
}

impl From<&ffi::Call> for Call {
    fn from(call: &ffi::Call) -> Self {
        let dtype = match call.dtype {
            ffi::Dtype::F16 => Dtype::F16,
            ffi::Dtype::Bf16 => Dtype::Bf16,
            _ => Dtype::F32,
        };
        let math = match dtype {
            Dtype::F32 if call.allow_tf32 => Math::Tf32,
            Dtype::F16 if call.allow_fp16_accumulation => Math::Fp16Accumulate,
            _ => Math::Strict,
        };
        Self {
            settings: Settings {
                device: call.device,
                dtype,
                math,
                split_k: call.allow_split_k,
                deterministic: call.deterministic,
            },
            stream: call.stream,
            workspace: Workspace {
                data: call.workspace,
                bytes: call.workspace_bytes,
                private: call.workspace_private,
            },
        }
    }
}
