//! The C ABI of `include/hypatia/hypatia.h`: the operators on tensor handles
//! (`at::Tensor*`, as tch, AOTInductor's shim and other bindings hold them) and
//! on module handles (`torch::jit::Module*`).
//!
//! Every function returns 0 or a status and leaves its message for
//! `hypatia_last_error`, which is per thread. No function unwinds.
#![allow(unsafe_code)] // Raw handles are the point of a C ABI.

use std::cell::RefCell;
use std::ffi::{c_char, CString};
use std::sync::LazyLock;

use crate::bridge::ffi::{self, Tensor};
use crate::bridge::module::ffi::{call_explain, call_optimize, Module};
use crate::error::{guarded, Error};

/// Success.
pub const OK: i32 = 0;
/// An argument was wrong, or LibTorch reported an error.
pub const ERROR: i32 = 1;
/// A bug in Hypatia.
pub const INTERNAL: i32 = 2;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::new(CString::default());
}

/// Runs `body`, keeps its error for `hypatia_last_error` and returns a status.
fn status(op: &'static str, body: impl FnOnce() -> Result<(), Error>) -> i32 {
    let result = guarded(op, body);
    let (status, text) = match result {
        Ok(()) => (OK, String::new()),
        Err(error @ Error::Internal { .. }) => (INTERNAL, error.to_string()),
        Err(error) => (ERROR, error.to_string()),
    };
    let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
    // A thread that is ending has no place for the text any more.
    let _ = LAST_ERROR.try_with(|last| last.replace(text));
    status
}

/// LibTorch's text without the C++ backtrace that follows it.
pub(crate) fn libtorch_error(error: &cxx::Exception) -> Error {
    let text = error.what();
    let first = text.split("\nException raised from").next().unwrap_or(text);
    Error::LibTorch(first.trim_end().to_owned())
}

fn null_argument(op: &'static str, name: &str) -> Error {
    null("tensor", op, name)
}

fn null(what: &str, op: &'static str, name: &str) -> Error {
    Error::Argument { op, expected: format!("a {what} for {name}"), got: "a null pointer".into() }
}

/// # Safety
/// `handle` is null or a live `at::Tensor`.
unsafe fn required<'a>(
    op: &'static str,
    name: &str,
    handle: *const Tensor,
) -> Result<&'a Tensor, Error> {
    // SAFETY: forwarded; null is refused here.
    unsafe { handle.as_ref() }.ok_or_else(|| null_argument(op, name))
}

/// Version of this ABI; does no work and needs no LibTorch.
#[no_mangle]
pub extern "C" fn hypatia_abi_version() -> u32 {
    crate::ABI_VERSION
}

/// Read from the file by loaders (`python/hypatia.py`): a library for another
/// LibTorch cannot be opened to be asked.
#[used]
#[no_mangle]
pub static HYPATIA_BUILT_FOR: [u8; BUILT_FOR.len()] = BUILT_FOR;
const BUILT_FOR: [u8; BUILT_FOR_TEXT.len()] = {
    let mut bytes = [0; BUILT_FOR_TEXT.len()];
    bytes.copy_from_slice(BUILT_FOR_TEXT.as_bytes());
    bytes
};
const BUILT_FOR_TEXT: &str =
    concat!("hypatia built for LibTorch ", env!("HYPATIA_LIBTORCH_VERSION"), "\0");

/// `major.minor.patch` of the LibTorch the library was built against.
#[no_mangle]
pub extern "C" fn hypatia_libtorch_version() -> *const c_char {
    const VERSION: &str = concat!(env!("HYPATIA_LIBTORCH_VERSION"), "\0");
    VERSION.as_ptr().cast()
}

/// The JSON of `hypatia::build_info` at the first call; lives for ever.
#[no_mangle]
pub extern "C" fn hypatia_build_info() -> *const c_char {
    static TEXT: LazyLock<CString> = LazyLock::new(|| {
        let text = guarded("build_info", || Ok(crate::build_info::json()));
        CString::new(text.unwrap_or_default()).unwrap_or_default()
    });
    TEXT.as_ptr()
}

/// Message of this thread's last call, empty after a success; lives until
/// this thread's next call.
#[no_mangle]
pub extern "C" fn hypatia_last_error() -> *const c_char {
    LAST_ERROR.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// `*result = relu(input · weightᵀ + bias)`.
///
/// # Safety
/// `input` and `weight` are live `at::Tensor`s, `bias` is one or null, `result`
/// is writable. The caller owns `*result`.
#[no_mangle]
pub unsafe extern "C" fn hypatia_fused_linear_relu(
    input: *const Tensor,
    weight: *const Tensor,
    bias: *const Tensor,
    result: *mut *mut Tensor,
) -> i32 {
    const OP: &str = "fused_linear_relu";
    status(OP, || {
        if result.is_null() {
            return Err(null_argument(OP, "result"));
        }
        // SAFETY: the caller's promise; null handles are refused or, for the
        // bias, meant.
        unsafe {
            let input = required(OP, "input", input)?;
            let weight = required(OP, "weight", weight)?;
            let output = ffi::call_fused_linear_relu(input, weight, bias)
                .map_err(|error| libtorch_error(&error))?;
            *result = output.into_raw();
        }
        Ok(())
    })
}

/// Gradients of [`hypatia_fused_linear_relu`] for the results that are not
/// null: `grad_input`, `grad_weight`, `grad_bias`.
///
/// # Safety
/// The four tensors are live `at::Tensor`s; each result is null or writable.
/// The caller owns what is written.
#[no_mangle]
pub unsafe extern "C" fn hypatia_fused_linear_relu_backward(
    grad_output: *const Tensor,
    input: *const Tensor,
    weight: *const Tensor,
    output: *const Tensor,
    grad_input: *mut *mut Tensor,
    grad_weight: *mut *mut Tensor,
    grad_bias: *mut *mut Tensor,
) -> i32 {
    const OP: &str = "fused_linear_relu_backward";
    status(OP, || {
        let results = [grad_input, grad_weight, grad_bias];
        // SAFETY: the caller's promise; null handles are refused.
        let gradients = unsafe {
            ffi::call_fused_linear_relu_backward(
                required(OP, "grad_output", grad_output)?,
                required(OP, "input", input)?,
                required(OP, "weight", weight)?,
                required(OP, "output", output)?,
                results.map(|result| !result.is_null()),
            )
        }
        .map_err(|error| libtorch_error(&error))?;
        let values = [gradients.input, gradients.weight, gradients.bias];
        for (result, value) in results.into_iter().zip(values) {
            if !result.is_null() {
                // SAFETY: not null, and writable by the caller's promise.
                unsafe { *result = value.into_raw() };
            }
        }
        Ok(())
    })
}

/// `*result` = `layers` linear layers in turn, each but the last followed by a
/// ReLU, the last if `relu_last` is not 0.
///
/// # Safety
/// `input` is a live `at::Tensor`; `weights` points to `layers` of them,
/// `biases` is null or points to as many, of which any may be null; `result` is
/// writable. The caller owns `*result` and both arrays.
#[no_mangle]
pub unsafe extern "C" fn hypatia_fused_mlp(
    input: *const Tensor,
    weights: *const *const Tensor,
    biases: *const *const Tensor,
    layers: i64,
    relu_last: i32,
    result: *mut *mut Tensor,
) -> i32 {
    const OP: &str = "fused_mlp";
    status(OP, || {
        if result.is_null() {
            return Err(null_argument(OP, "result"));
        }
        let count = usize::try_from(layers).map_err(|_| Error::Argument {
            op: OP,
            expected: "a number of layers".into(),
            got: layers.to_string(),
        })?;
        if weights.is_null() && count > 0 {
            return Err(null_argument(OP, "weights"));
        }
        // SAFETY: the caller's promise of `layers` handles behind `weights`,
        // which is not null where there are any.
        let handles = (0..count).map(|i| unsafe { *weights.add(i) });
        if let Some(place) = handles.clone().position(<*const Tensor>::is_null) {
            return Err(null_argument(OP, &format!("weights[{place}]")));
        }
        let weights: Vec<*const Tensor> = handles.collect();
        let biases: Vec<*const Tensor> = if biases.is_null() {
            vec![std::ptr::null(); count]
        } else {
            // SAFETY: the caller's promise, as for the weights.
            (0..count).map(|i| unsafe { *biases.add(i) }).collect()
        };
        // SAFETY: both lists have `count` entries; no weight is null (above),
        // and what is not null is live by the caller's promise.
        unsafe {
            let input = required(OP, "input", input)?;
            let (weights, biases) = (weights.as_ptr(), biases.as_ptr());
            let output = ffi::call_fused_mlp(input, weights, biases, count, relu_last != 0)
                .map_err(|error| libtorch_error(&error))?;
            *result = output.into_raw();
        }
        Ok(())
    })
}

/// Frees a tensor that a function of this ABI returned; null is allowed.
///
/// # Safety
/// `tensor` is null or was returned by this ABI and is not used again.
#[no_mangle]
pub unsafe extern "C" fn hypatia_tensor_free(tensor: *mut Tensor) {
    let _ = guarded("tensor_free", || {
        // SAFETY: the caller's promise; a UniquePtr accepts null.
        drop(unsafe { cxx::UniquePtr::from_raw(tensor) });
        Ok(())
    });
}

/// `*result` = a module that computes the same, with the same parameters.
///
/// # Safety
/// `module` is null or a live `torch::jit::Module`, `result` null or writable.
/// The caller owns `*result`.
#[no_mangle]
pub unsafe extern "C" fn hypatia_optimize(module: *const Module, result: *mut *mut Module) -> i32 {
    const OP: &str = "optimize";
    status(OP, || {
        // SAFETY: the caller's promise; null is refused here.
        let module = unsafe { module.as_ref() }.ok_or_else(|| null("module", OP, "module"))?;
        if result.is_null() {
            return Err(null("pointer", OP, "result"));
        }
        let optimized = call_optimize(module).map_err(|error| libtorch_error(&error))?;
        // SAFETY: not null, and writable by the caller's promise.
        unsafe { *result = optimized.into_raw() };
        Ok(())
    })
}

/// `*result` = the JSON of `hypatia::explain`.
///
/// # Safety
/// `module` is null or a live `torch::jit::Module`, `result` null or writable.
/// The caller owns `*result`.
#[no_mangle]
pub unsafe extern "C" fn hypatia_explain(module: *const Module, result: *mut *mut c_char) -> i32 {
    const OP: &str = "explain";
    status(OP, || {
        // SAFETY: the caller's promise; null is refused here.
        let module = unsafe { module.as_ref() }.ok_or_else(|| null("module", OP, "module"))?;
        if result.is_null() {
            return Err(null("pointer", OP, "result"));
        }
        let text = call_explain(module).map_err(|error| libtorch_error(&error))?;
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        // SAFETY: not null, and writable by the caller's promise.
        unsafe { *result = text.into_raw() };
        Ok(())
    })
}

/// Frees a module that a function of this ABI returned; null is allowed.
///
/// # Safety
/// `module` is null or was returned by this ABI and is not used again.
#[no_mangle]
pub unsafe extern "C" fn hypatia_module_free(module: *mut Module) {
    let _ = guarded("module_free", || {
        // SAFETY: the caller's promise; a UniquePtr accepts null.
        drop(unsafe { cxx::UniquePtr::from_raw(module) });
        Ok(())
    });
}

/// Frees a string that [`hypatia_explain`] returned; null is allowed.
///
/// # Safety
/// `text` is null or was returned by this ABI and is not used again.
#[no_mangle]
pub unsafe extern "C" fn hypatia_string_free(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: made by `CString::into_raw` in `hypatia_explain`.
        drop(unsafe { CString::from_raw(text) });
    }
}
