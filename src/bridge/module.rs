//! `optimize` and `explain` on module handles, for the C ABI.
// cxx's generated items; the declarations below are documented.
#![allow(missing_docs, clippy::missing_safety_doc, unsafe_code)]

#[cxx::bridge(namespace = "hypatia::bridge")]
pub mod ffi {
    #[namespace = "torch::jit"]
    unsafe extern "C++" {
        include!("cpp/graph/handles.h");

        /// `torch::jit::Module`, as tch and other bindings hold it.
        type Module;
    }

    unsafe extern "C++" {
        /// Calls `hypatia::optimize` through the dispatcher.
        fn call_optimize(module: &Module) -> Result<UniquePtr<Module>>;

        /// Calls `hypatia::explain` through the dispatcher.
        fn call_explain(module: &Module) -> Result<String>;
    }
}
