//! TorchScript files, for the command line: what C++ does with them.
// cxx's generated items; the declarations below are documented.
#![allow(missing_docs, clippy::missing_safety_doc, unsafe_code)]

#[cxx::bridge(namespace = "hypatia::bridge")]
pub mod ffi {
    /// What to pass for an argument of forward.
    enum InputKind {
        /// Random numbers of `dtype` and `shape`.
        Tensor,
        Int,
        Float,
        /// 0 or 1 in `whole`.
        Bool,
        None,
        /// Nothing: it has a default.
        Default,
        /// Nobody knows.
        Unknown,
    }

    /// One argument of forward.
    #[derive(Clone)]
    struct Input {
        name: String,
        /// Its type, as TorchScript writes it.
        type_name: String,
        /// Where shape or value come from.
        source: String,
        /// Given or recorded, not guessed.
        certain: bool,
        kind: InputKind,
        /// `c10::ScalarType`
        dtype: i32,
        shape: Vec<i64>,
        /// Integers are drawn from 0 to this, exclusive.
        limit: i64,
        whole: i64,
        real: f64,
    }

    /// One tensor or number of an output, beside its counterpart.
    #[derive(Clone)]
    struct Comparison {
        /// `output[0]['key']`
        path: String,
        /// `Float`, `Long`, …, or what was expected if there is a mismatch.
        what: String,
        elements: i64,
        /// Not comparable at all: what came instead. Otherwise empty.
        mismatch: String,
        max_abs: f64,
        abs_at: String,
        /// Against the original's element.
        max_rel: f64,
        rel_at: String,
        /// Against the original's element plus its tensor's largest: what the
        /// bound is about.
        worst: f64,
        worst_at: String,
    }

    unsafe extern "C++" {
        include!("cpp/archive/archive.h");

        /// A module and the files packed beside it.
        type Archive;

        /// What forward returned.
        type Outputs;

        fn silence();
        fn open_library(path: &str) -> Result<()>;
        fn load_archive(path: &str, extra: &Vec<String>) -> Result<UniquePtr<Archive>>;
        fn archive_record(path: &str, name: &str) -> Result<Vec<u8>>;
        fn save_archive(archive: &Archive, path: &str) -> Result<()>;
        fn archive_inputs(archive: &Archive, path: &str, rows: i64) -> Result<Vec<Input>>;
        fn run_archive(archive: &Archive, inputs: &Vec<Input>) -> Result<UniquePtr<Outputs>>;
        fn compare_outputs(original: &Outputs, candidate: &Outputs) -> Result<Vec<Comparison>>;
    }
}
