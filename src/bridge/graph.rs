//! What C++ and Rust say to each other about TorchScript graphs: flat records
//! of one block in, a list of steps that build its replacement out.
// cxx's generated items; the declarations below are documented.
#![allow(missing_docs, clippy::missing_safety_doc, unsafe_code)]

#[cxx::bridge(namespace = "hypatia::bridge")]
pub mod ffi {
    /// What a value is, as far as the optimizer cares.
    enum ValueKind {
        Tensor,
        Int,
        Float,
        Bool,
        None,
        /// `int[]`
        Ints,
        /// `Tensor[]` or `Tensor?[]`
        Tensors,
        /// Anything else.
        Other,
    }

    /// Where a value comes from.
    enum Origin {
        /// An output of a node of this block.
        Computed,
        /// A block input, or a value of an enclosing block.
        Outside,
        /// An attribute of the module that no node of the graph sets.
        Parameter,
        /// `prim::Constant`.
        Constant,
    }

    /// One value that the block's nodes read or make; its place in
    /// `Block::values` is its number.
    struct Value {
        /// For reports: the name in the graph's text, or the attribute's path.
        name: String,
        kind: ValueKind,
        origin: Origin,
        /// The payload below is the value of a compile-time constant.
        known: bool,
        /// Int, and Bool as 0 or 1.
        #[cxx_name = "int_"]
        int: i64,
        #[cxx_name = "float_"]
        float: f64,
        ints: Vec<i64>,
        /// `c10::ScalarType`; -1 unknown. A fact, never a recorded hint.
        dtype: i32,
        /// Sizes that hold in every run (parameters, constants): -1 for a size
        /// that may differ. Counts only if `has_shape`.
        has_shape: bool,
        shape: Vec<i64>,
        /// Sizes seen in a recorded run. For costs only, never for guards.
        has_hint: bool,
        hint: Vec<i64>,
        /// A strided, dense-layout tensor (not sparse, quantized, mkldnn).
        strided: bool,
        /// A gradient may be asked for. False only if that is sure.
        needs_grad: bool,
        /// A constant that may be folded into others: frozen, no gradient.
        bakeable: bool,
        /// Every element of that constant is finite.
        finite: bool,
        /// The same number for the same tensor under two names; values that are
        /// neither parameters nor constants have one of their own.
        identity: u32,
        /// Something outside the block, or a node that is not plainly a
        /// reader, may hold this value or a view of it.
        escapes: bool,
        /// The same number for values that may share memory.
        storage: u32,
    }

    /// One node of the block, in order.
    struct Node {
        /// `aten::linear`, without the overload.
        kind: String,
        /// `Tensor`, `Scalar`, …; empty if there is none.
        overload: String,
        /// A node with blocks of its own (If, Loop) also lists here what those
        /// use from outside.
        inputs: Vec<u32>,
        outputs: Vec<u32>,
        /// May be removed, moved or repeated: no side effect, and nothing
        /// writes to what it reads or makes. Dropout counts as movable.
        movable: bool,
        /// Otherwise why not, for the report.
        reason: String,
    }

    struct Block {
        /// For reports: `forward`, `forward/if.1/then`, …
        name: String,
        values: Vec<Value>,
        nodes: Vec<Node>,
        /// What the block returns.
        outputs: Vec<u32>,
    }

    /// What a step adds at the end of the new block.
    enum StepKind {
        /// Original node `node`.
        Keep,
        /// Constants.
        Int,
        Float,
        Bool,
        None,
        Ints,
        /// `prim::ListConstruct` of `inputs`.
        Tensors,
        OptionalTensors,
        /// A tensor constant computed now from tensor constants: `op` over
        /// `inputs`, `ints` and `float`, in fp64 while only other folds read
        /// it, then in `dtype`.
        Fold,
        /// A node `op` with `inputs` and one output.
        Make,
    }

    /// The result of step `i` is value `values.len() + i`.
    struct Step {
        kind: StepKind,
        /// Keep: which node. Otherwise the node whose source location it takes.
        node: u32,
        op: String,
        inputs: Vec<u32>,
        ints: Vec<i64>,
        #[cxx_name = "float_"]
        float: f64,
        dtype: i32,
    }

    /// Every use of `old` becomes a use of `new`; the inputs of steps are
    /// meant as they are.
    struct Replacement {
        #[cxx_name = "old_"]
        old: u32,
        #[cxx_name = "new_"]
        new: u32,
    }

    /// The new block: steps in order, then the replacements; nodes that no
    /// step keeps are gone. Nothing counts unless `changed`.
    struct Edits {
        changed: bool,
        steps: Vec<Step>,
        replacements: Vec<Replacement>,
    }

    /// What the optimizer knows of the machine that the model will run on.
    #[derive(Clone)]
    struct Options {
        /// `cpu`, `cuda` (any) or `h100`.
        device: String,
        /// Measured on this machine for `cpu`; 0 for a built-in figure.
        cpu_gflops: f64,
        cpu_gbytes: f64,
        cpu_dispatch_us: f64,
        /// Rows (product of all sizes but the last) of the model's input; 0
        /// for unknown: then only what wins at every size is done.
        rows: i64,
        /// Values have the sizes of an example that the user gave.
        example: bool,
    }

    extern "Rust" {
        /// One call of optimize or explain: blocks in, a report at the end.
        type Session;

        fn new_session(options: &Options) -> Box<Session>;

        /// What the session was made with.
        fn options(self: &Session) -> &Options;

        /// Starts over with the module as it is now: counts are of the last
        /// pass, times and rewrites of all.
        fn begin_pass(self: &mut Session);

        /// What is noted from here on is about one method, which may have to
        /// stay.
        fn begin_method(self: &mut Session);

        /// The method stays: forgets what was noted of it. Its blocks, given
        /// once more, are only counted.
        fn discard_method(self: &mut Session);

        /// The block's replacement. An error means the block stays as it is.
        fn optimize_block(self: &mut Session, block: &Block) -> Result<Edits>;

        /// Notes a rewrite that C++ made itself.
        fn note_rewrite(self: &mut Session, rule: &str, at: &str);

        /// Notes what was left alone and why.
        fn note_skipped(self: &mut Session, at: &str, reason: &str);

        /// The JSON of `hypatia::explain`.
        fn report(self: &Session) -> String;

        /// GraphViz text of every block before and after.
        fn dot(self: &Session) -> String;
    }

    unsafe extern "C++" {
        include!("cpp/archive/archive.h");
        include!("hypatia/src/bridge/archive.rs.h");

        /// A TorchScript file in memory.
        type Archive = crate::bridge::archive::ffi::Archive;

        /// One argument of forward.
        type Input = crate::bridge::archive::ffi::Input;

        /// What `hypatia::optimize` would assume of the machine.
        fn archive_options(archive: &Archive) -> Result<Options>;

        /// `hypatia::optimize_for`, the report left in the session; the sizes
        /// of `inputs` are an example's. None for `hypatia::optimize`.
        fn optimize_archive(
            archive: &Archive,
            inputs: &Vec<Input>,
            session: &mut Session,
        ) -> Result<UniquePtr<Archive>>;
    }
}

use super::session::{new_session, Session};
