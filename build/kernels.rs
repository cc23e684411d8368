//! Compiles `kernels/*.cu` with NVRTC, which comes with every CUDA LibTorch,
//! and writes a Rust table of the images. Without NVRTC the table is empty
//! and the operators use ATen where a kernel of ours would have run.

#![allow(unsafe_code)] // NVRTC is a C library, opened at build time.

use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::libtorch::LibTorch;

/// What a kernel is compiled for: real architectures to a cubin each, the
/// virtual one to PTX that newer drivers can compile for chips not listed.
const TARGETS: [(&str, u32); 5] =
    [("sm_80", 80), ("sm_90a", 90), ("sm_100a", 100), ("sm_120", 120), ("compute_80", 80)];

/// What the build should report.
pub struct Kernels {
    /// Targets built in; empty without NVRTC.
    pub archs: Vec<String>,
    /// Why there are none, or which NVRTC built them.
    pub note: String,
}

/// Compiles every kernel for every target into `out`.
pub fn compile(root: &Path, out: &Path, torch: &LibTorch) -> Kernels {
    let folder = root.join("kernels");
    println!("cargo:rerun-if-changed={}", folder.display());
    println!("cargo:rerun-if-env-changed=HYPATIA_NVRTC");
    println!("cargo:rerun-if-env-changed=HYPATIA_KERNEL_LINES");

    let mut table =
        String::from("/// Every embedded kernel image.\npub static IMAGES: &[Image] = &[\n");
    let (archs, note) = match Nvrtc::open(torch) {
        Err(why) => (Vec::new(), why),
        Ok(nvrtc) => {
            for source in sources(&folder) {
                let stem = source.file_stem().expect("listed by extension").to_string_lossy();
                for (target, capability) in targets_of(&source) {
                    let image = nvrtc.compile(&source, &folder, target);
                    let file = out.join(format!("{stem}.{target}"));
                    std::fs::write(&file, image).expect("OUT_DIR is writable");
                    let _ = writeln!(
                        table,
                        "    Image {{ kernel: {stem:?}, capability: {capability}, ptx: {}, \
                         bytes: include_bytes!({file:?}) }},",
                        target.starts_with("compute")
                    );
                }
            }
            let archs = TARGETS.iter().map(|(target, _)| (*target).to_owned()).collect();
            (archs, nvrtc.description)
        }
    };
    table.push_str("];\n");
    std::fs::write(out.join("kernel_images.rs"), table).expect("OUT_DIR is writable");
    if archs.is_empty() {
        println!("cargo:warning=hypatia: built without own CUDA kernels: {note}");
    }
    Kernels { archs, note }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("kernels/ is part of the package")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "cu"))
        .collect();
    found.sort(); // The order of the table must not depend on the file system.
    found
}

/// Those that the source's header comment names behind `// Targets`, else all.
fn targets_of(source: &Path) -> Vec<(&'static str, u32)> {
    let text = std::fs::read_to_string(source).expect("just listed");
    let Some(line) = text.lines().find_map(|line| line.strip_prefix("// Targets ")) else {
        return TARGETS.to_vec();
    };
    let named = |name: &str| {
        let target = TARGETS.into_iter().find(|(target, _)| *target == name);
        target.unwrap_or_else(|| panic!("{}: unknown target {name}", source.display()))
    };
    line.split_whitespace().map(named).collect()
}

/// The lines of a compilation's log that tell of spilled registers.
fn spills(log: &str) -> Vec<&str> {
    let spilled = |line: &&str| {
        line.split(',').any(|part| {
            let bytes = part.trim().split(' ').next().and_then(|n| n.parse::<u64>().ok());
            part.contains("bytes spill") && bytes != Some(0)
        })
    };
    log.lines().filter(spilled).collect()
}

type Program = *mut c_void;
type Status = c_int;

/// The dozen entry points of NVRTC that a build needs, opened at run time.
struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    headers: PathBuf,
    description: String,
}

impl Nvrtc {
    fn open(torch: &LibTorch) -> Result<Self, String> {
        // The wheel keeps CUDA beside torch; the LibTorch archive inside it.
        let mut folders = vec![];
        if let Some(folder) = std::env::var_os("HYPATIA_NVRTC") {
            folders.push(PathBuf::from(folder));
        }
        folders.push(torch.lib.join("../../nvidia/cu13/lib"));
        folders.push(torch.lib.clone());
        folders.push(PathBuf::from("/usr/local/cuda/lib64"));
        for folder in &folders {
            let library = folder.join("libnvrtc.so.13");
            let headers = folder.join("../include");
            if library.exists() && headers.join("cuda_fp16.h").exists() {
                return Self::load(folder, &library, headers);
            }
        }
        Err(format!("no libnvrtc.so.13 with CUDA headers beside it in {folders:?}"))
    }

    #[allow(clippy::missing_transmute_annotations)] // The fields annotate.
    fn load(folder: &Path, library: &Path, headers: PathBuf) -> Result<Self, String> {
        // NVRTC opens its builtins by bare name; an already open one is found
        // whatever the loader path says.
        if let Some(builtins) = std::fs::read_dir(folder)
            .map_err(|error| error.to_string())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.to_string_lossy().contains("libnvrtc-builtins.so"))
        {
            open_library(&builtins)?;
        }
        let handle = open_library(library)?;
        let symbol = |name: &str| -> Result<*mut c_void, String> {
            let name = CString::new(name).expect("no NUL in a symbol name");
            // SAFETY: `handle` came from dlopen just above and is never closed.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if address.is_null() {
                Err(format!("{} lacks {}", library.display(), name.to_string_lossy()))
            } else {
                Ok(address)
            }
        };
        // SAFETY: each address is non-null (checked in `symbol`) and names a
        // function whose C signature, in nvrtc.h of CUDA 13, is the field's.
        unsafe {
            Ok(Self {
                create: std::mem::transmute(symbol("nvrtcCreateProgram")?),
                compile: std::mem::transmute(symbol("nvrtcCompileProgram")?),
                log_size: std::mem::transmute(symbol("nvrtcGetProgramLogSize")?),
                log: std::mem::transmute(symbol("nvrtcGetProgramLog")?),
                cubin_size: std::mem::transmute(symbol("nvrtcGetCUBINSize")?),
                cubin: std::mem::transmute(symbol("nvrtcGetCUBIN")?),
                ptx_size: std::mem::transmute(symbol("nvrtcGetPTXSize")?),
                ptx: std::mem::transmute(symbol("nvrtcGetPTX")?),
                destroy: std::mem::transmute(symbol("nvrtcDestroyProgram")?),
                headers,
                description: library.display().to_string(),
            })
        }
    }

    /// One source for one target. A kernel that does not compile, or that
    /// spills, stops the build.
    fn compile(&self, source: &Path, folder: &Path, target: &str) -> Vec<u8> {
        println!("cargo:rerun-if-changed={}", source.display());
        let text = CString::new(std::fs::read(source).expect("just listed")).expect("no NUL");
        let name = CString::new(source.to_string_lossy().as_bytes()).expect("no NUL");
        let virtual_target = target.starts_with("compute");
        let mut options = vec![
            format!("--gpu-architecture={target}"),
            "--std=c++17".to_owned(),
            "-default-device".to_owned(),
            format!("--include-path={}", folder.display()),
            format!("--include-path={}", self.headers.display()),
        ];
        // For profilers; three quarters of an image.
        if std::env::var_os("HYPATIA_KERNEL_LINES").is_some() {
            options.push("--generate-line-info".to_owned());
        }
        if !virtual_target {
            options.push("--ptxas-options=-v".to_owned()); // Spills come in the log.
        }
        let options: Vec<CString> =
            options.into_iter().map(|option| CString::new(option).expect("no NUL")).collect();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();

        let mut program: Program = std::ptr::null_mut();
        // SAFETY: the strings and the option array outlive each call; the two
        // sizes are asked for before buffers of that size are handed over;
        // `program` is destroyed once, at the end.
        unsafe {
            let null = std::ptr::null();
            let created = (self.create)(&mut program, text.as_ptr(), name.as_ptr(), 0, null, null);
            assert_eq!(created, 0, "nvrtcCreateProgram failed for {}", source.display());
            let status = (self.compile)(program, pointers.len() as c_int, pointers.as_ptr());
            let mut size = 0;
            (self.log_size)(program, &mut size);
            let mut log = vec![0u8; size.max(1)];
            (self.log)(program, log.as_mut_ptr().cast());
            let log = String::from_utf8_lossy(&log);
            let shown = source.display();
            assert!(status == 0, "{shown} does not compile for {target}:\n{log}");
            assert!(spills(&log).is_empty(), "{shown} spills registers on {target}:\n{log}");
            let (size_of, get) = if virtual_target {
                (self.ptx_size, self.ptx)
            } else {
                (self.cubin_size, self.cubin)
            };
            let mut size = 0;
            assert_eq!(size_of(program, &mut size), 0, "no image for {target}");
            let mut image = vec![0u8; size];
            assert_eq!(get(program, image.as_mut_ptr().cast()), 0, "no image for {target}");
            (self.destroy)(&mut program);
            image
        }
    }
}

fn open_library(path: &Path) -> Result<*mut c_void, String> {
    let name = CString::new(path.to_string_lossy().as_bytes()).expect("no NUL in a path");
    // SAFETY: a NUL-terminated path; the libraries opened are NVRTC's, whose
    // initialisers have no requirements.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
        if handle.is_null() {
            return Err(CStr::from_ptr(libc::dlerror()).to_string_lossy().into_owned());
        }
        Ok(handle)
    }
}
