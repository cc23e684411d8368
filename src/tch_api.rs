//! Safe wrappers over tch tensors (feature `tch`).
#![allow(unsafe_code)] // tch and the bridge name the same at::Tensor.

use tch::Tensor;

use crate::bridge::ffi;
use crate::capi::libtorch_error;
use crate::error::Error;

/// The `at::Tensor` behind a tch tensor.
fn handle(tensor: &Tensor) -> &ffi::Tensor {
    // SAFETY: tch holds an `at::Tensor*` that is never null and lives as long
    // as the wrapper; both crates are built against the same LibTorch (the
    // build scripts look in the same places).
    unsafe { &*tensor.as_ptr().cast() }
}

fn owned(tensor: cxx::UniquePtr<ffi::Tensor>) -> Tensor {
    // SAFETY: a heap-allocated `at::Tensor` whose ownership goes to tch, which
    // deletes it.
    unsafe { Tensor::from_ptr(tensor.into_raw().cast()) }
}

/// `relu(input · weightᵀ + bias)`, differentiable to any order.
///
/// `input` is `[*, K]`, `weight` `[N, K]`, `bias` `[N]`; the result is `[*, N]`
/// (source: `torch.nn.functional.linear`). All of one dtype (fp32, fp64, fp16,
/// bf16) and device, any strides.
///
/// # Errors
/// Shapes, dtypes or devices that do not fit, as one sentence.
///
/// ```
/// use tch::{Device, Kind, Tensor};
/// let x = Tensor::from_slice2(&[[1.0f32, -2.0]]);
/// let w = Tensor::from_slice2(&[[1.0f32, 1.0], [1.0, -1.0]]);
/// let y = hypatia::fused_linear_relu(&x, &w, None)?;
/// assert_eq!(Vec::<f32>::try_from(y.flatten(0, 1)).unwrap(), [0.0, 3.0]);
/// # Ok::<(), hypatia::Error>(())
/// ```
pub fn fused_linear_relu(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, Error> {
    let bias = bias.map_or(std::ptr::null(), |bias| std::ptr::from_ref(handle(bias)));
    // SAFETY: null or a live tensor, as the bridge asks.
    unsafe { ffi::call_fused_linear_relu(handle(input), handle(weight), bias) }
        .map(owned)
        .map_err(|error| libtorch_error(&error))
}

/// Gradients of [`fused_linear_relu`] for input, weight and bias, each where
/// `output_mask` asks for it. `output` is what the forward call returned.
///
/// # Errors
/// As for [`fused_linear_relu`].
pub fn fused_linear_relu_backward(
    grad_output: &Tensor,
    input: &Tensor,
    weight: &Tensor,
    output: &Tensor,
    output_mask: [bool; 3],
) -> Result<[Option<Tensor>; 3], Error> {
    let gradients = ffi::call_fused_linear_relu_backward(
        handle(grad_output),
        handle(input),
        handle(weight),
        handle(output),
        output_mask,
    )
    .map_err(|error| libtorch_error(&error))?;
    let optional = |tensor: cxx::UniquePtr<ffi::Tensor>| (!tensor.is_null()).then(|| owned(tensor));
    Ok([gradients.input, gradients.weight, gradients.bias].map(optional))
}

/// Linear layers in turn, each but the last followed by a ReLU, the last only
/// with `relu_last`; differentiable to any order.
///
/// `input` is `[*, K]`; each layer is its weight `[N, K]`, whose K is the N of
/// the one before, and its bias `[N]`, if any. The result is `[*, N]` of the
/// last layer. Dtypes, devices and strides as for [`fused_linear_relu`].
///
/// # Errors
/// As for [`fused_linear_relu`], and without a layer.
///
/// ```
/// use tch::Tensor;
/// let x = Tensor::from_slice2(&[[1.0f32, -2.0]]);
/// let w = Tensor::from_slice2(&[[1.0f32, 1.0], [1.0, -1.0]]);
/// let y = hypatia::fused_mlp(&x, &[(&w, None), (&w, None)], false)?;
/// assert_eq!(Vec::<f32>::try_from(y.flatten(0, 1)).unwrap(), [3.0, -3.0]);
/// # Ok::<(), hypatia::Error>(())
/// ```
pub fn fused_mlp(
    input: &Tensor,
    layers: &[(&Tensor, Option<&Tensor>)],
    relu_last: bool,
) -> Result<Tensor, Error> {
    let pointer = |tensor| std::ptr::from_ref(handle(tensor));
    let weights: Vec<_> = layers.iter().map(|(weight, _)| pointer(weight)).collect();
    let biases: Vec<_> =
        layers.iter().map(|(_, bias)| bias.map_or(std::ptr::null(), pointer)).collect();
    let (weights, biases) = (weights.as_ptr(), biases.as_ptr());
    // SAFETY: both lists have an entry a layer, of tensors that `layers`
    // borrows; a bias may be null.
    unsafe { ffi::call_fused_mlp(handle(input), weights, biases, layers.len(), relu_last) }
        .map(owned)
        .map_err(|error| libtorch_error(&error))
}
