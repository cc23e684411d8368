//! The ATen operators that the optimizer looks into. Every other one is a
//! wall: its inputs are kept, its outputs are given.

/// How an operator treats memory and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nature {
    /// A matrix product.
    Product,
    /// Element by element, fresh result.
    Pointwise,
    /// Returns a view of (or its very) first argument; values unchanged.
    View,
    /// Either, depending on strides or flags.
    PerhapsView,
    /// Copies its inputs into a fresh result.
    Copy,
    /// Reads sizes only; the result is a number.
    Metadata,
}

impl Nature {
    /// The result may be its first argument's memory.
    pub fn may_view(self) -> bool {
        matches!(self, Self::View | Self::PerhapsView)
    }
}

/// One known operator.
#[derive(Debug)]
pub struct Known {
    /// `aten::add`
    pub kind: &'static str,
    /// Numbers of inputs that are understood.
    pub inputs: &'static [usize],
    /// What it does to memory.
    pub nature: Nature,
    /// Draws random numbers (where not switched off).
    pub random: bool,
    /// Its result does not depend on its arguments' strides, nor do errors.
    pub any_strides: bool,
}

const fn known(kind: &'static str, inputs: &'static [usize], nature: Nature) -> Known {
    Known { kind, inputs, nature, random: false, any_strides: true }
}

/// Sorted by what they do.
static TABLE: [Known; 34] = [
    known("aten::linear", &[3], Nature::Product),
    known("aten::addmm", &[5], Nature::Product),
    known("aten::matmul", &[2], Nature::Product),
    known("aten::mm", &[2], Nature::Product),
    known("hypatia::fused_linear_relu", &[3], Nature::Product),
    known("hypatia::fused_mlp", &[4], Nature::Product),
    known("aten::relu", &[1], Nature::Pointwise),
    known("aten::clamp_min", &[2], Nature::Pointwise),
    known("aten::clamp", &[3], Nature::Pointwise),
    known("aten::threshold", &[3], Nature::Pointwise),
    known("aten::add", &[3], Nature::Pointwise),
    known("aten::sub", &[3], Nature::Pointwise),
    known("aten::mul", &[2], Nature::Pointwise),
    known("aten::div", &[2], Nature::Pointwise),
    known("aten::batch_norm", &[9], Nature::Pointwise),
    // In evaluation it returns its input, whatever its schema says.
    Known {
        kind: "aten::dropout",
        inputs: &[3],
        nature: Nature::PerhapsView,
        random: true,
        any_strides: true,
    },
    known("aten::t", &[1], Nature::View),
    known("aten::numpy_T", &[1], Nature::View),
    known("aten::transpose", &[3], Nature::View),
    known("aten::permute", &[2], Nature::View),
    Known {
        kind: "aten::view",
        inputs: &[2],
        nature: Nature::View,
        random: false,
        any_strides: false,
    },
    known("aten::reshape", &[2], Nature::PerhapsView),
    known("aten::flatten", &[3], Nature::PerhapsView),
    known("aten::unsqueeze", &[2], Nature::View),
    known("aten::squeeze", &[1, 2], Nature::View),
    known("aten::slice", &[5], Nature::View),
    known("aten::cat", &[2], Nature::Copy),
    known("aten::max_pool1d", &[6], Nature::Copy),
    known("aten::max_pool2d", &[6], Nature::Copy),
    known("aten::amax", &[3], Nature::Copy),
    known("aten::size", &[1, 2], Nature::Metadata),
    known("aten::dim", &[1], Nature::Metadata),
    known("prim::ListConstruct", &[], Nature::Copy),
    known("aten::contiguous", &[2], Nature::PerhapsView),
];

/// The operator of that name, if it is known.
pub fn lookup(kind: &str) -> Option<&'static Known> {
    // A few dozen entries: a scan is as fast as a map, and this is not hot.
    TABLE.iter().find(|known| known.kind == kind)
}

/// Other operators whose result does not depend on their inputs' strides: they
/// may read a slice where they read a dense tensor before.
pub fn accepts_any_strides(kind: &str) -> bool {
    const READERS: [&str; 14] = [
        "aten::softmax",
        "aten::log_softmax",
        "aten::sigmoid",
        "aten::tanh",
        "aten::gelu",
        "aten::silu",
        "aten::mean",
        "aten::sum",
        "aten::exp",
        "aten::abs",
        "aten::bmm",
        "aten::layer_norm",
        "aten::minimum",
        "aten::maximum",
    ];
    lookup(kind).map_or_else(|| READERS.contains(&kind), |known| known.any_strides)
}

/// Operators outside [`lookup`]'s table whose results are never negative, and
/// whose gradient is zero where the result is: ReLU after them changes nothing.
pub fn never_negative(kind: &str) -> bool {
    matches!(kind, "aten::sigmoid" | "aten::softmax" | "aten::exp" | "aten::relu6")
}
