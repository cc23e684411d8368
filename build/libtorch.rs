//! Where LibTorch is: tch's own variables in tch's order, then the project's
//! `.venv`, so that one setting serves both crates.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest release whose headers the shim compiles against.
const OLDEST: (u32, u32) = (2, 10);

/// A LibTorch that was found and has what the shim needs.
pub struct LibTorch {
    /// Folders for `-I`.
    pub includes: Vec<PathBuf>,
    /// Folder with `libtorch_cpu.so` and `libc10.so`.
    pub lib: PathBuf,
    /// For example `2.11.0`.
    pub version: String,
    /// Major and minor number.
    pub minor: (u32, u32),
    /// `_GLIBCXX_USE_CXX11_ABI`.
    pub cxx11_abi: String,
}

/// Looks in each place in turn; the error is the whole text for the user.
pub fn find(root: &Path) -> Result<LibTorch, String> {
    for name in
        ["LIBTORCH_USE_PYTORCH", "LIBTORCH", "LIBTORCH_INCLUDE", "LIBTORCH_LIB", "VIRTUAL_ENV"]
    {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH_CXX11_ABI");

    let mut looked = String::new();
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        let python = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
        return match from_python(Path::new(python)) {
            Ok(base) => validate(&base, &base),
            Err(why) => Err(explain(&format!(
                "  LIBTORCH_USE_PYTORCH is set, but `{python}` has no usable torch: {why}\n"
            ))),
        };
    }
    let _ = writeln!(looked, "  LIBTORCH_USE_PYTORCH: not set");
    if let Some(base) = std::env::var_os("LIBTORCH").map(PathBuf::from) {
        let part = |name| std::env::var_os(name).map_or_else(|| base.clone(), PathBuf::from);
        return validate(&part("LIBTORCH_INCLUDE"), &part("LIBTORCH_LIB"));
    }
    let _ = writeln!(looked, "  LIBTORCH: not set");
    if Path::new("/usr/lib/libtorch.so").exists() {
        return validate(Path::new("/usr"), Path::new("/usr"));
    }
    let _ = writeln!(looked, "  /usr/lib/libtorch.so: not there");
    let venv = root.join(".venv");
    match from_python(&venv.join("bin/python")) {
        Ok(base) => validate(&base, &base),
        Err(why) => {
            let _ = writeln!(looked, "  {}: {why}", venv.display());
            Err(explain(&looked))
        }
    }
}

fn explain(looked: &str) -> String {
    format!(
        "hypatia: expected LibTorch (version {}.{} or newer), got none. Looked for it in:\n{looked}\
         To mend it, run `make setup` (puts torch into .venv), or set LIBTORCH=/path/to/libtorch, \
         or LIBTORCH_USE_PYTORCH=1 with a Python that has torch.",
        OLDEST.0, OLDEST.1
    )
}

/// The `torch` folder of a Python, without importing it (that takes seconds).
fn from_python(python: &Path) -> Result<PathBuf, String> {
    let script = "import importlib.util as u, os; s = u.find_spec('torch'); \
                  print(os.path.dirname(s.origin) if s else '')";
    let output = Command::new(python)
        .args(["-c", script])
        .output()
        .map_err(|error| format!("cannot run {}: {error}", python.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if text.is_empty() {
        return Err(format!("{} has no package torch", python.display()));
    }
    Ok(PathBuf::from(text))
}

/// Checks headers, libraries and version of the LibTorch below two folders
/// (nearly always the same one).
fn validate(include_base: &Path, lib_base: &Path) -> Result<LibTorch, String> {
    let include = include_base.join("include");
    let header = include.join("torch/headeronly/version.h");
    let header = if header.exists() {
        header
    } else {
        include.join("torch/csrc/api/include/torch/version.h")
    };
    let lib = lib_base.join("lib");
    for needed in [header.clone(), lib.join("libtorch_cpu.so"), lib.join("libc10.so")] {
        if !needed.exists() {
            return Err(explain(&format!("  {}: not there\n", needed.display())));
        }
    }
    println!("cargo:rerun-if-changed={}", header.display());
    let text = std::fs::read_to_string(&header)
        .map_err(|error| format!("hypatia: cannot read {}: {error}", header.display()))?;
    let number = |name: &str| -> Option<u32> {
        let start = text.find(&format!("#define {name} "))?;
        text[start..].lines().next()?.rsplit(' ').next()?.trim().parse().ok()
    };
    let (Some(major), Some(minor), Some(patch)) = (
        number("TORCH_VERSION_MAJOR"),
        number("TORCH_VERSION_MINOR"),
        number("TORCH_VERSION_PATCH"),
    ) else {
        return Err(format!("hypatia: expected version numbers in {}, got none", header.display()));
    };
    if (major, minor) < OLDEST {
        return Err(format!(
            "hypatia: expected LibTorch {}.{} or newer, got {major}.{minor}.{patch} in {}; \
             `make setup` installs the version of record into .venv.",
            OLDEST.0,
            OLDEST.1,
            include_base.display()
        ));
    }
    Ok(LibTorch {
        includes: vec![include.clone(), include.join("torch/csrc/api/include")],
        lib,
        version: format!("{major}.{minor}.{patch}"),
        minor: (major, minor),
        cxx11_abi: std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned()),
    })
}
