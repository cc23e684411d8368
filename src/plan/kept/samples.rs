//! Plans for the tests: every name, every algorithm, every field changed alone.

use super::super::problem::{Dtype, Epilogue, Gemm, Math, Operand};
use super::super::tensor_gemm::Shape;
use super::{hash, Choice, Config, Kept, CONFIG, SEED};

pub const GEMM: Gemm = Gemm {
    device: 0,
    dtype: Dtype::F32,
    math: Math::Strict,
    split_k: true,
    deterministic: false,
    m: 512,
    n: 128,
    k: 784,
    a: Operand { transposed: true, ld: 784, alignment: 256 },
    b: Operand { transposed: false, ld: 784, alignment: 128 },
    ldd: 512,
    d_alignment: 256,
    bias_alignment: 64,
    epilogue: Epilogue::ReluBias,
};

/// The plan whose time is `us`, of a product with that `m`.
pub fn plan(m: i64, us: f32) -> Kept {
    Kept::new(&Gemm { m, ..GEMM }, choices()[0], Some(us))
}

pub fn with_sum(body: &str) -> String {
    format!("{body} sum={:016x}", hash(body.as_bytes(), SEED))
}

fn choices() -> Vec<Choice> {
    let config = [1, 0x8000_0000, 0, u32::MAX, 5, 6, 7, 8, 9];
    let mut all = vec![
        Choice::Library { config, workspace: 8 << 20 },
        Choice::Library { config: Config::default(), workspace: 0 },
        Choice::Library { config: [u32::MAX; CONFIG], workspace: u64::MAX },
    ];
    for shape in Shape::ALL {
        all.extend([false, true].map(|overlaps| Choice::Own { shape, overlaps }));
    }
    all
}

fn gemms() -> Vec<Gemm> {
    let mut all = vec![];
    for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
        for math in [Math::Strict, Math::Tf32, Math::Fp16Accumulate] {
            for epilogue in [Epilogue::None, Epilogue::Bias, Epilogue::Relu, Epilogue::ReluBias] {
                all.push(Gemm { dtype, math, epilogue, ..GEMM });
            }
        }
    }
    let a = |a| Gemm { a, ..GEMM };
    let b = |b| Gemm { b, ..GEMM };
    all.extend([
        Gemm { split_k: false, ..GEMM },
        Gemm { deterministic: true, ..GEMM },
        Gemm { m: 1, ..GEMM },
        Gemm { n: 1, ..GEMM },
        Gemm { k: i64::from(i32::MAX), ..GEMM },
        Gemm { ldd: 513, ..GEMM },
        Gemm { d_alignment: 2, ..GEMM },
        Gemm { bias_alignment: 2, ..GEMM },
        a(Operand { transposed: false, ..GEMM.a }),
        a(Operand { ld: 785, ..GEMM.a }),
        a(Operand { alignment: 4, ..GEMM.a }),
        b(Operand { transposed: true, ..GEMM.b }),
        b(Operand { ld: 785, ..GEMM.b }),
        b(Operand { alignment: 4, ..GEMM.b }),
    ]);
    all
}

pub fn all() -> Vec<Kept> {
    let times = [None, Some(0.0), Some(3.25), Some(1e-7), Some(123_456.79)];
    let mut all = vec![];
    for gemm in gemms() {
        for choice in choices() {
            all.extend(times.map(|us| Kept::new(&gemm, choice, us)));
        }
    }
    all
}
