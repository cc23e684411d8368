//! Builds everything that is not Rust: finds LibTorch, compiles the CUDA
//! kernels with NVRTC, compiles the cxx bridge and the C++ shim, and tells
//! cargo how to link the result.

mod kernels;
mod libtorch;
mod shim;

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));

    println!("cargo:rerun-if-changed=build");
    if std::env::var_os("CARGO_FEATURE_LIBTORCH").is_none() {
        return; // Only the pure modules: nothing to find, compile or link.
    }
    let torch = libtorch::find(&root).unwrap_or_else(|message| {
        // A panic would bury the message in a backtrace hint.
        eprintln!("\n{message}\n");
        std::process::exit(1);
    });
    let kernels = kernels::compile(&root, &out, &torch);
    shim::compile(&root, &torch);

    println!("cargo:rustc-env=HYPATIA_LIBTORCH_VERSION={}", torch.version);
    println!("cargo:rustc-env=HYPATIA_CUDA_ARCHS={}", kernels.archs.join(" "));
    println!("cargo:rustc-env=HYPATIA_KERNELS_NOTE={}", kernels.note);
    println!("cargo:rustc-env=HYPATIA_BUILD_REVISION={}", git_revision(&root));
    // For dependents' build scripts (DEP_HYPATIA_*): they need an rpath too.
    println!("cargo:libtorch_lib={}", torch.lib.display());
    println!("cargo:libtorch_version={}", torch.version);
}

/// The short revision, `+` behind it when the tree differs from it; `unknown`
/// outside a checkout (a crate from the registry).
///
/// A commit does not run this script again: that would compile the C++ shim
/// again. `make` passes the revision in the environment instead, which only
/// recompiles Rust (`src/build_info.rs`); this is what plain cargo falls back to.
fn git_revision(root: &Path) -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        Some(revision) => {
            let dirty = git(&["status", "--porcelain", "-uno"]).is_some_and(|s| !s.is_empty());
            format!("{revision}{}", if dirty { "+" } else { "" })
        }
        None => "unknown".to_owned(),
    }
}
