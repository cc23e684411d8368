//! Compiles the cxx bridge and the C++ shim, and states how to link them.

use std::path::Path;

use crate::libtorch::LibTorch;

/// Every C++ source, one per responsibility (see `cpp/README.md`).
const SOURCES: &[&str] = &[
    "register",
    "check",
    "check_mlp",
    "mlp",
    "composite",
    "composite_mlp",
    "convert",
    "workspace",
    "cpu",
    "cpu_kernels",
    "cpu_backward",
    "cpu_matrix",
    "cpu_memory",
    "threads",
    "cuda",
    "cuda_mlp",
    "report",
    "meta",
    "autograd",
    "autograd_key",
    "autograd_mlp",
    "autograd_key_mlp",
    "compiled_autograd",
    "autocast",
    "vmap",
    "trace",
    "dispatch",
    "gradients",
    "handles",
    "graph/optimize",
    "graph/module",
    "graph/machine",
    "graph/method",
    "graph/attributes",
    "graph/functional",
    "graph/shapes",
    "graph/rank_guard",
    "graph/obstacle",
    "graph/facts",
    "graph/aliases",
    "graph/escapes",
    "graph/kinds",
    "graph/payload",
    "graph/export",
    "graph/apply",
    "graph/fold",
    "graph/handles",
    "archive/archive",
    "archive/inputs",
    "archive/run",
    "archive/compare",
];

/// Every file with a cxx bridge.
const BRIDGES: [&str; 5] = [
    "src/bridge.rs",
    "src/bridge/archive.rs",
    "src/bridge/cpu.rs",
    "src/bridge/graph.rs",
    "src/bridge/module.rs",
];

/// Compiles and links.
pub fn compile(root: &Path, torch: &LibTorch) {
    let mut build = cxx_build::bridges(BRIDGES);
    for name in SOURCES {
        build.file(root.join(format!("cpp/{name}.cpp")));
    }
    // From 2.13 on LibTorch's own headers want C++20.
    build.std(if torch.minor >= (2, 13) { "c++20" } else { "c++17" });
    // Thin glue: -O3 and debug information would only make the build slower.
    build.opt_level(2).debug(false);
    build.define("_GLIBCXX_USE_CXX11_ABI", torch.cxx11_abi.as_str());
    build.include(root);
    for include in &torch.includes {
        // Not -I: warnings in LibTorch's headers are not ours to fix.
        build.flag("-isystem").flag(include.to_string_lossy().as_ref());
    }
    build.flag("-Wall").flag("-Wextra").flag("-fvisibility=hidden");
    if std::env::var_os("HYPATIA_WERROR").is_some() {
        build.flag("-Werror");
    }
    println!("cargo:rerun-if-env-changed=HYPATIA_WERROR");
    for folder in ["cpp", "include"] {
        println!("cargo:rerun-if-changed={}", root.join(folder).display());
    }
    for bridge in BRIDGES {
        println!("cargo:rerun-if-changed={bridge}");
    }

    // Nothing in Rust refers to the static initialisers that register the
    // operators; without whole-archive the linker drops them silently.
    build.link_lib_modifier("+whole-archive");
    build.compile("hypatia_shim");

    println!("cargo:rustc-link-search=native={}", torch.lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    // Operators stay registered for the life of the process, so the code
    // behind them must too.
    println!("cargo:rustc-link-arg-cdylib=-Wl,-z,nodelete");
    println!("cargo:rustc-link-arg-cdylib=-Wl,-soname,libhypatia.so");
    // Found again at run time, in the library as in every test program.
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", torch.lib.display());
    // rustc links --as-needed, which would drop a CUDA LibTorch's libtorch.so
    // and, with it, CUDA; a program has no Python to load it.
    for programs in ["tests", "bins"] {
        println!("cargo:rustc-link-arg-{programs}=-Wl,--no-as-needed,-ltorch,--as-needed");
    }
}
