//! What comes in and what goes out: plain data, the same as the bridge's
//! records (`src/bridge/graph.rs` says what each field means).

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ValueKind {
    /// `Tensor`
    Tensor,
    /// `int`
    Int,
    /// `float`
    Float,
    /// `bool`
    Bool,
    /// `None`
    None,
    /// `int[]`
    Ints,
    /// `Tensor[]` or `Tensor?[]`
    Tensors,
    /// Anything else.
    #[default]
    Other,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Origin {
    /// An output of one of the block's nodes.
    Computed,
    /// A block input, or a value of an enclosing block.
    #[default]
    Outside,
    /// An attribute of the module that nothing sets.
    Parameter,
    /// A compile-time constant.
    Constant,
}

/// One value of a block; its place in [`Block::values`] is its number.
#[derive(Debug, Clone, Default)]
pub struct Value {
    /// For reports.
    pub name: String,
    /// What it is.
    pub kind: ValueKind,
    /// Where it comes from.
    pub origin: Origin,
    /// The payload is a compile-time constant.
    pub known: bool,
    /// Int, and Bool as 0 or 1.
    pub int: i64,
    /// Float.
    pub float: f64,
    /// Ints.
    pub ints: Vec<i64>,
    /// `c10::ScalarType`, if that is a fact.
    pub dtype: Option<i32>,
    /// Sizes that hold in every run; -1 for one that may differ.
    pub shape: Option<Vec<i64>>,
    /// Sizes of one recorded run: for costs only.
    pub hint: Option<Vec<i64>>,
    /// A strided tensor, not sparse or quantized.
    pub strided: bool,
    /// A gradient may be asked for.
    pub needs_grad: bool,
    /// A constant that may be folded into others.
    pub bakeable: bool,
    /// That constant has only finite elements.
    pub finite: bool,
    /// The same for the same tensor under two names.
    pub identity: u32,
    /// Something unknown may hold this value or a view of it.
    pub escapes: bool,
    /// The same for values that may share memory.
    pub storage: u32,
}

/// One node of a block.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// `aten::linear`
    pub kind: String,
    /// `Tensor`, `Scalar`, …
    pub overload: String,
    /// Values read; for a node with blocks, those its blocks read too.
    pub inputs: Vec<u32>,
    /// Values made.
    pub outputs: Vec<u32>,
    /// May be removed, moved or repeated.
    pub movable: bool,
    /// Otherwise why not.
    pub reason: String,
}

/// A straight list of nodes.
#[derive(Debug, Clone, Default)]
pub struct Block {
    /// For reports.
    pub name: String,
    /// All values that its nodes read or make.
    pub values: Vec<Value>,
    /// In order.
    pub nodes: Vec<Node>,
    /// What it returns.
    pub outputs: Vec<u32>,
}

/// What a step adds at the end of the new block. The result of step `i` is
/// value `values.len() + i`, except of [`StepKind::Keep`], which keeps its own.
#[derive(Debug, Clone, PartialEq)]
pub enum StepKind {
    /// The original node of [`Step::node`].
    Keep,
    /// A constant.
    Int(i64),
    /// A constant.
    Float(f64),
    /// A constant.
    Bool(bool),
    /// A constant.
    None,
    /// A constant.
    Ints(Vec<i64>),
    /// `Tensor[]` of the inputs.
    Tensors,
    /// `Tensor?[]` of the inputs.
    OptionalTensors,
    /// A tensor constant computed now.
    Fold {
        /// What to compute; `cpp/graph/fold.h` lists them.
        op: String,
        /// Integer parameters.
        ints: Vec<i64>,
        /// Float parameter.
        float: f64,
        /// `c10::ScalarType` of the result.
        dtype: i32,
    },
    /// A node with one output.
    Make(String),
}

/// One step of the new block.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// What it adds.
    pub kind: StepKind,
    /// Original node: the one kept, or whose source location this one takes.
    pub node: u32,
    /// Values read.
    pub inputs: Vec<u32>,
}

/// The replacement of a block.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Edits {
    /// Nothing below counts if this is false.
    pub changed: bool,
    /// In order.
    pub steps: Vec<Step>,
    /// Uses of `.0` become uses of `.1`.
    pub replacements: Vec<(u32, u32)>,
}

/// What the optimizer knows of the machine.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `cpu`, `cuda` or `h100`.
    pub device: String,
    /// Measured; 0 for the built-in figure.
    pub cpu_gflops: f64,
    /// Measured; 0 for the built-in figure.
    pub cpu_gbytes: f64,
    /// Measured; 0 for the built-in figure.
    pub cpu_dispatch_us: f64,
    /// Rows of the model's input; 0 for unknown.
    pub rows: i64,
    /// Hints are the sizes of an example that the user gave.
    pub example: bool,
}
