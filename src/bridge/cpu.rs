//! What C++ calls of `crate::cpu`: a chain is described once, then worked off by as
//! many of LibTorch's threads as it is worth.
// cxx's generated items; the declarations below are documented.
#![allow(missing_docs, clippy::missing_safety_doc)]
// Addresses cross here; each block says who checked them.
#![allow(unsafe_code)]

use crate::cpu::element::Element;
use crate::cpu::forward::{Forward, Kernels, Layer};
use crate::cpu::panels::Matrix;
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

    extern "Rust" {
        /// One call: all layers on one input.
        type CpuForward;

        /// Whether kernels of ours take so many rows of that type, and as many products
        /// in the largest layer.
        fn cpu_takes(element: CpuElement, rows: usize, products: usize) -> bool;

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
        ) -> Result<Box<CpuForward>>;

        /// As many threads as the work is worth.
        fn threads(self: &CpuForward) -> usize;

        /// What one thread does; outputs are complete when all have returned.
        fn work(self: &CpuForward) -> Result<()>;
    }
}

/// See `ffi::CpuForward`.
pub struct CpuForward(Forward);

fn cpu_takes(element: ffi::CpuElement, rows: usize, products: usize) -> bool {
    Kernels::best(element.into(), rows, products).is_some()
}

unsafe fn cpu_forward(
    element: ffi::CpuElement,
    input: &ffi::CpuMatrix,
    layers: &[ffi::CpuLayer],
    threads: usize,
) -> Result<Box<CpuForward>, Error> {
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
        Ok(Box::new(CpuForward(forward)))
    })
}

impl CpuForward {
    fn threads(&self) -> usize {
        self.0.threads()
    }

    fn work(&self) -> Result<(), Error> {
        guarded("fused_mlp", || {
            if self.0.work() {
                return Ok(());
            }
            Err(Error::Internal { op: "fused_mlp", message: "in another thread".into() })
        })
    }
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
