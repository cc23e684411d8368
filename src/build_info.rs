//! The JSON behind `hypatia::build_info`, `hypatia_build_info` and
//! [`crate::build_info`].

use crate::cpu::element::Element;
use crate::cpu::forward::Kernels;
use crate::cpu::tile::Math;
use crate::cpu::{isa, results, scratch};
use crate::launch;

/// Version, LibTorch, kernels, CPU features and revision of this library.
#[must_use]
pub fn json() -> String {
    let archs = list(env!("HYPATIA_CUDA_ARCHS").split_whitespace());
    let cublaslt = launch::device::cublaslt_version()
        .map_or_else(|| "null".to_owned(), |version| version.to_string());
    let plan_cache = launch::kept_plans::folder()
        .map_or_else(|| "null".to_owned(), |folder| quoted(&folder.to_string_lossy()));
    format!(
        concat!(
            "{{\"version\": {}, \"abi_version\": {}, \"libtorch\": {}, ",
            "\"git_revision\": {}, \"cuda_archs\": {}, \"cuda_kernels\": {}, ",
            "\"strict_fp32\": {}, \"cublaslt\": {}, \"gemm_plans\": {}, ",
            "\"plan_cache\": {}, \"plans_from_cache\": {}, \"recordings\": {}, ",
            "\"cpu_features\": {}, \"cpu_kernels\": {}}}"
        ),
        quoted(env!("CARGO_PKG_VERSION")),
        crate::ABI_VERSION,
        quoted(env!("HYPATIA_LIBTORCH_VERSION")),
        quoted(option_env!("HYPATIA_GIT_REVISION").unwrap_or(env!("HYPATIA_BUILD_REVISION"))),
        archs,
        quoted(env!("HYPATIA_KERNELS_NOTE")),
        quoted(strict_fp32()),
        cublaslt,
        launch::product::plans_kept(),
        plan_cache,
        launch::kept_plans::plans_taken(),
        launch::replay::recordings_made(),
        list(cpu_features().into_iter()),
        cpu_kernels(),
    )
}

/// What the CPU kernels are made of, the rates that decided it, and the memory that
/// they keep between calls.
fn cpu_kernels() -> String {
    let choice = isa::bf16();
    let on_amx = |element| matches!(Kernels::large(element), Math::Amx(_));
    format!(
        concat!(
            "{{\"isa\": {}, \"bf16\": {}, \"fma_gflops\": {:.1}, \"bf16_dot_gflops\": {:.1}, ",
            "\"amx_gflops\": {:.1}, \"fp16\": {}, \"fp32\": {}, \"scratch_bytes\": {}, \"scratch_limit\": {}, \
             \"result_bytes\": {}, \"result_limit\": {}}}"
        ),
        quoted(isa::Isa::best().name()),
        quoted(choice.bf16.name()),
        choice.fma,
        choice.dot,
        choice.amx,
        quoted(if on_amx(Element::F16) { "amx" } else { "widen" }),
        quoted(if on_amx(Element::F32) { "amx" } else { "fma" }),
        scratch::kept(),
        scratch::MOST_KEPT,
        results::kept(),
        results::MOST_KEPT,
    )
}

/// What strict fp32 is computed as on a GPU.
fn strict_fp32() -> &'static str {
    match std::env::var("HYPATIA_FP32").as_deref() {
        Ok("ieee") => "SGEMM (HYPATIA_FP32=ieee)",
        Ok("tensor") => "on sm_90 six bf16 products for each of fp32, summed in fp32 (HYPATIA_FP32=tensor)",
        _ => "on sm_90, where it is faster, six bf16 products for each of fp32, summed in fp32; else SGEMM",
    }
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if (c as u32) < 0x20 => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<&'static str> {
    let mut found = vec![];
    macro_rules! probe {
        ($($name:tt),*) => { $( if is_x86_feature_detected!($name) { found.push($name); } )* };
    }
    probe!("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16");
    found
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_features() -> Vec<&'static str> {
    vec![]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped() {
        assert_eq!(quoted("a\"b\\c\nd"), "\"a\\\"b\\\\c\\u000ad\"");
    }

    #[test]
    fn names_its_version_and_libtorch() {
        let json = json();
        assert!(json.contains(&format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"))));
        assert!(json.contains("\"libtorch\": \"2."), "{json}");
        assert!(json.contains("\"strict_fp32\": \""), "{json}");
        assert!(!json.contains('\n'));
    }
}
