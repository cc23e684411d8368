//! What C++ calls of `crate::cpu`: a chain is described once, then worked off by as
//! many of LibTorch's threads as it is worth.
// cxx's generated items; the declarations below are documented.
#![allow(missing_docs, clippy::missing_safety_doc)]
// Addresses cross here; each block says who checked them.
#![allow(unsafe_code)]

use crate::cpu::amx;
use crate::cpu::backward::{self, Backward};
use crate::cpu::element::Element;
use crate::cpu::forward::{Forward, Kernels, Layer};
use crate::cpu::isa::{self, Isa};
use crate::cpu::panels::Matrix;
use crate::cpu::results;
use crate::error::{guarded, Error};

#[cxx::bridge(namespace = "hypatia::bridge")]
pub mod ffi {
    /// Element type, as C++ names it.
    #[derive(Clone, Copy)]
    enum CpuElement {
        F32,
        F16,
        Bf16,
    }

    /// A matrix in memory with unit stride along K.
    #[derive(Clone, Copy)]
    struct CpuMatrix {
        data: usize,
        stride: usize,
        rows: usize,
        k: usize,
    }

    /// `output = input · weightᵀ + bias`, then ReLU if `relu`; `bias` 0 for none,
    /// `output` 0 in front of the last layer where nobody wants it.
    #[derive(Clone, Copy)]
    struct CpuLayer {
        weight: CpuMatrix,
        bias: usize,
        relu: bool,
        output: usize,
    }

    /// A layer of a backward pass in fp32; `output` 0 where no ReLU followed, gradients
    /// 0 where nobody wants them.
    #[derive(Clone, Copy)]
    struct CpuLayerBackward {
        weight: CpuMatrix,
        input: CpuMatrix,
        output: usize,
        grad_weight: usize,
        grad_bias: usize,
    }

    /// Memory of a tensor that a call returns; address 0 for none.
    #[derive(Clone, Copy)]
    struct CpuBlock {
        address: usize,
        bytes: usize,
    }

    extern "Rust" {
        /// Memory for so many bytes, of any content, of a tensor that is gone or new.
        fn cpu_take(bytes: usize) -> CpuBlock;

        /// Takes it back when the tensor is gone.
        ///
        /// # Safety
        /// `cpu_take` returned it, and nobody uses it any more.
        unsafe fn cpu_give(block: &CpuBlock);

        /// One call, to be worked off by several threads.
        type CpuWork;

        /// As many threads as the work is worth.
        fn threads(self: &CpuWork) -> usize;

        /// What thread `me` of them does; results are complete when all have returned.
        fn work(self: &CpuWork, me: usize) -> Result<()>;

        /// Finds out what this CPU computes with, some milliseconds where it has AMX.
        fn cpu_measure();

        /// Whether kernels of ours take so many rows of that type, and as many products
        /// in the largest layer.
        fn cpu_takes(element: CpuElement, rows: usize, products: usize) -> bool;

        /// Whether one of so many elements is infinite.
        ///
        /// # Safety
        /// They can be read and are aligned.
        unsafe fn cpu_has_infinity(element: CpuElement, data: usize, count: usize) -> bool;

        /// `layers` in turn, each on the output of the one before; `threads` at most.
        ///
        /// # Safety
        /// Every address is valid for its shape and aligned for its element while
        /// the result lives; no size is 0; `cpu_takes` said yes.
        unsafe fn cpu_forward(
            element: CpuElement,
            input: &CpuMatrix,
            layers: &[CpuLayer],
            threads: usize,
        ) -> Result<Box<CpuWork>>;

        /// Whether kernels of ours take the gradients of fp32 layers, or of 16-bit ones
        /// (`half`) that were widened; of the weights their sizes count.
        fn cpu_takes_backward(
            half: bool,
            rows: usize,
            weights: &[CpuMatrix],
            threads: usize,
        ) -> bool;

        /// Gradients of fp32 layers, the first one first; `threads` at most.
        ///
        /// # Safety
        /// As for `cpu_forward`; `cpu_takes_backward` said yes.
        unsafe fn cpu_backward(
            grad_output: &CpuMatrix,
            layers: &[CpuLayerBackward],
            grad_input: usize,
            threads: usize,
        ) -> Result<Box<CpuWork>>;
    }
}

fn cpu_take(bytes: usize) -> ffi::CpuBlock {
    let (address, bytes) = results::take(bytes).unwrap_or((0, 0));
    ffi::CpuBlock { address, bytes }
}

unsafe fn cpu_give(block: &ffi::CpuBlock) {
    // SAFETY: forwarded.
    unsafe { results::give(block.address, block.bytes) }
}

/// See `ffi::CpuWork`.
pub enum CpuWork {
    /// All layers on one input.
    Forward(Forward),
    /// All gradients of a chain.
    Backward(Backward),
}

impl CpuWork {
    fn threads(&self) -> usize {
        match self {
            Self::Forward(forward) => forward.threads(),
            Self::Backward(backward) => backward.threads(),
        }
    }

    fn work(&self, me: usize) -> Result<(), Error> {
        let op = match self {
            Self::Forward(_) => "fused_mlp",
            Self::Backward(_) => "fused_mlp_backward",
        };
        guarded(op, || {
            let complete = match self {
                Self::Forward(forward) => forward.work(me),
                Self::Backward(backward) => backward.work(me),
            };
            if complete {
                return Ok(());
            }
            Err(Error::Internal { op, message: "in another thread".into() })
        })
    }
}

fn cpu_measure() {
    // A panic, which nothing in there should raise, is the first call's to report.
    let _ = guarded("load", || {
        isa::bf16();
        Ok(())
    });
}

fn cpu_takes(element: ffi::CpuElement, rows: usize, products: usize) -> bool {
    Kernels::best(element.into(), rows, products).is_some()
}

unsafe fn cpu_has_infinity(element: ffi::CpuElement, data: usize, count: usize) -> bool {
    // SAFETY: cpp/cpu_kernels.cpp asked `readable`, and holds the tensor.
    unsafe { Element::from(element).any_infinite(data as *const u8, count) }
}

unsafe fn cpu_forward(
    element: ffi::CpuElement,
    input: &ffi::CpuMatrix,
    layers: &[ffi::CpuLayer],
    threads: usize,
) -> Result<Box<CpuWork>, Error> {
    guarded("fused_mlp", || {
        let element = Element::from(element);
        let of = |layer: &ffi::CpuLayer| input.rows * layer.weight.rows * layer.weight.k;
        let products = layers.iter().map(of).max().unwrap_or(0);
        let kernels = Kernels::best(element, input.rows, products).expect("asked for by cpu_takes");
        let layers = layers.iter().map(|layer| Layer {
            weight: layer.weight.of(element),
            bias: layer.bias as *const u8,
            relu: layer.relu,
            output: layer.output as *mut u8,
        });
        // SAFETY: cpp/cpu_kernels.cpp describes tensors that it holds until the work
        // is done, and checked their types, sizes, strides and alignment.
        let forward =
            unsafe { Forward::new(kernels, input.of(element), layers.collect(), threads) };
        Ok(Box::new(CpuWork::Forward(forward)))
    })
}

fn cpu_takes_backward(half: bool, rows: usize, weights: &[ffi::CpuMatrix], threads: usize) -> bool {
    let sizes = weights.iter().map(|weight| (weight.rows, weight.k));
    let isa = Isa::best();
    // CPUs with AMX multiply 16 bits in it, or (fp16) in AVX-512, as ATen does there.
    let widened = !half || !amx::available();
    isa != Isa::Scalar && widened && backward::takes(isa, rows, sizes, threads)
}

unsafe fn cpu_backward(
    grad_output: &ffi::CpuMatrix,
    layer_list: &[ffi::CpuLayerBackward],
    grad_input: usize,
    threads: usize,
) -> Result<Box<CpuWork>, Error> {
    guarded("fused_mlp_backward", || {
        let of = |matrix: &ffi::CpuMatrix| matrix.of(Element::F32);
        let layers = layer_list.iter().map(|layer| backward::Layer {
            weight: of(&layer.weight),
            input: of(&layer.input),
            output: layer.output as *const f32,
            grad_weight: layer.grad_weight as *mut f32,
            grad_bias: layer.grad_bias as *mut f32,
        });
        let grad_input = grad_input as *mut f32;
        let of_layer = |layer: &ffi::CpuLayerBackward| layer.weight.rows * layer.weight.k;
        let largest = layer_list.iter().map(of_layer).max().unwrap_or(0);
        let kernels = Kernels::best(Element::F32, grad_output.rows, grad_output.rows * largest)
            .expect("asked for by cpu_takes_backward");
        // SAFETY: as in `cpu_forward`, of cpp/cpu_backward.cpp.
        let backward = unsafe {
            Backward::new(kernels, of(grad_output), layers.collect(), grad_input, threads)
        };
        Ok(Box::new(CpuWork::Backward(backward)))
    })
}

impl From<ffi::CpuElement> for Element {
    fn from(element: ffi::CpuElement) -> Self {
        match element {
            ffi::CpuElement::F16 => Self::F16,
            ffi::CpuElement::Bf16 => Self::Bf16,
            _ => Self::F32,
        }
    }
}

impl ffi::CpuMatrix {
    fn of(self, element: Element) -> Matrix {
        let Self { data, stride, rows, k } = self;
        Matrix { data: data as *const u8, stride, rows, k, element }
    }
}
