//! The twelve functions of cuBLASLt that we call, from the library that
//! LibTorch already has in the process.
//!
//! cudarc would open `libcublasLt.so` by its unversioned name first: on a
//! machine with a CUDA toolkit that is a second cuBLASLt of whatever version
//! (seen: the toolkit's beside the wheel's). The types are cudarc's.

use std::ffi::{c_int, c_void, CStr};
use std::sync::OnceLock;

use cudarc::cublaslt::sys;

use super::Refusal;
use crate::plan::kept::{Config, CONFIG};

/// A status other than success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure(pub u32);

impl Failure {
    /// As a refusal that names the function.
    pub fn of(self, function: &str) -> Refusal {
        Refusal::failure(format!("{function} failed with cuBLAS status {}", self.0))
    }
}

fn checked(status: u32) -> Result<(), Failure> {
    if status == 0 {
        Ok(())
    } else {
        Err(Failure(status))
    }
}

/// Declares the table: a field and a symbol for each function.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// Entry points of one cuBLASLt.
        pub struct CublasLt {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl CublasLt {
            /// # Safety
            /// `library` is a handle of cuBLASLt 12 or 13 that stays open.
            unsafe fn table(library: *mut c_void) -> Result<Self, String> {
                $(
                    let name: &CStr = $symbol;
                    // SAFETY: the caller's handle; a NUL-terminated name.
                    let $field = unsafe { libc::dlsym(library, name.as_ptr()) };
                    if $field.is_null() {
                        return Err(format!("cuBLASLt lacks {}", name.to_string_lossy()));
                    }
                )*
                // SAFETY: not null; the signatures are those of cublasLt.h,
                // unchanged from CUDA 12.2 to 13.
                Ok(unsafe { Self { $($field: std::mem::transmute::<
                    *mut c_void,
                    unsafe extern "C" fn($($argument),*) -> $result,
                >($field),)* } })
            }
        }
    };
}

type Handle = sys::cublasLtHandle_t;
type Desc = *mut sys::cublasLtMatmulDescOpaque_t;
type Layout = sys::cublasLtMatrixLayout_t;
type Preference = sys::cublasLtMatmulPreference_t;
type Attribute = sys::cublasLtMatmulAlgoConfigAttributes_t;
type Heuristic = sys::cublasLtMatmulHeuristicResult_t;

/// An algorithm with the workspace it needs.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    result: Heuristic,
    /// What tells it from others, also in another process: its attributes. The bytes
    /// of the descriptor do not, some of them are never written.
    pub config: Config,
}

impl Found {
    /// Whether it sums parts of k apart.
    pub fn splits_k(&self) -> bool {
        self.config[SPLITS_K] > 1
    }

    /// Scratch bytes that it needs.
    pub fn workspace_bytes(&self) -> usize {
        self.result.workspaceSize
    }
}

/// What an algorithm's attributes are and how many bytes each has (cublasLt.h).
const ATTRIBUTES: [(Attribute, usize); CONFIG] = [
    (Attribute::CUBLASLT_ALGO_CONFIG_ID, 4),
    (Attribute::CUBLASLT_ALGO_CONFIG_TILE_ID, 4),
    (Attribute::CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 4),
    (Attribute::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 4),
    (Attribute::CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, 4),
    (Attribute::CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, 4),
    (Attribute::CUBLASLT_ALGO_CONFIG_STAGES_ID, 4),
    (Attribute::CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, 2),
    (Attribute::CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 2),
];

/// In [`ATTRIBUTES`].
const SPLITS_K: usize = 2;

functions! {
    version = c"cublasLtGetVersion": fn() -> usize;
    create = c"cublasLtCreate": fn(*mut Handle) -> u32;
    desc_init = c"cublasLtMatmulDescInit_internal":
        fn(Desc, usize, sys::cublasComputeType_t, sys::cudaDataType) -> u32;
    desc_set = c"cublasLtMatmulDescSetAttribute":
        fn(Desc, sys::cublasLtMatmulDescAttributes_t, *const c_void, usize) -> u32;
    layout_create = c"cublasLtMatrixLayoutCreate":
        fn(*mut Layout, sys::cudaDataType, u64, u64, i64) -> u32;
    layout_destroy = c"cublasLtMatrixLayoutDestroy": fn(Layout) -> u32;
    pref_create = c"cublasLtMatmulPreferenceCreate": fn(*mut Preference) -> u32;
    pref_destroy = c"cublasLtMatmulPreferenceDestroy": fn(Preference) -> u32;
    pref_set = c"cublasLtMatmulPreferenceSetAttribute":
        fn(Preference, sys::cublasLtMatmulPreferenceAttributes_t, *const c_void, usize) -> u32;
    heuristic = c"cublasLtMatmulAlgoGetHeuristic":
        fn(Handle, Desc, Layout, Layout, Layout, Layout, Preference, c_int, *mut Heuristic, *mut c_int)
            -> u32;
    config = c"cublasLtMatmulAlgoConfigGetAttribute":
        fn(*const sys::cublasLtMatmulAlgo_t, Attribute, *mut c_void, usize, *mut usize) -> u32;
    matmul = c"cublasLtMatmul":
        fn(
            Handle, Desc, *const c_void, *const c_void, Layout, *const c_void, Layout,
            *const c_void, *const c_void, Layout, *mut c_void, Layout,
            *const sys::cublasLtMatmulAlgo_t, *mut c_void, usize, *mut c_void
        ) -> u32;
}

/// The library, opened once.
///
/// # Errors
/// When there is none.
pub fn get() -> Result<&'static CublasLt, Refusal> {
    static LIBRARY: OnceLock<Result<CublasLt, String>> = OnceLock::new();
    LIBRARY.get_or_init(open).as_ref().map_err(|why| Refusal::failure(why.clone()))
}

fn open() -> Result<CublasLt, String> {
    const NAMES: [&CStr; 3] = [c"libcublasLt.so.13", c"libcublasLt.so.12", c"libcublasLt.so"];
    // First what is loaded already, then what the loader can find.
    for extra in [libc::RTLD_NOLOAD, 0] {
        for name in NAMES {
            // SAFETY: a NUL-terminated name; cuBLASLt's initialisers need no
            // care. The handle is never closed.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | extra) };
            if !library.is_null() {
                // SAFETY: a cuBLASLt by its name.
                return unsafe { CublasLt::table(library) };
            }
        }
    }
    Err("cuBLASLt (libcublasLt.so.13) cannot be opened".to_owned())
}

impl CublasLt {
    /// For example 130100.
    pub fn version(&self) -> usize {
        // SAFETY: takes nothing.
        unsafe { (self.version)() }
    }

    /// A handle for the current context.
    pub fn create(&self) -> Result<LtHandle, Failure> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes one handle.
        checked(unsafe { (self.create)(&mut handle) })?;
        Ok(LtHandle(handle))
    }

    /// An operation with default attributes.
    pub fn description(
        &self,
        compute: sys::cublasComputeType_t,
        scale: sys::cudaDataType,
    ) -> Result<sys::cublasLtMatmulDescOpaque_t, Failure> {
        let mut description = sys::cublasLtMatmulDescOpaque_t { data: [0; 32] };
        let size = size_of_val(&description);
        // SAFETY: the storage is as large as said.
        checked(unsafe { (self.desc_init)(&mut description, size, compute, scale) })?;
        Ok(description)
    }

    /// Sets one attribute; `T` is the attribute's type in cublasLt.h.
    pub fn set<T>(
        &self,
        description: &mut sys::cublasLtMatmulDescOpaque_t,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: T,
    ) -> Result<(), Failure> {
        // SAFETY: `value` lives through the call, its size goes with it, and
        // cuBLASLt compares that with the attribute's.
        checked(unsafe {
            (self.desc_set)(description, attribute, (&raw const value).cast(), size_of::<T>())
        })
    }

    /// A column-major matrix.
    pub fn layout(
        &'static self,
        dtype: sys::cudaDataType,
        rows: i64,
        cols: i64,
        ld: i64,
    ) -> Result<MatrixLayout, Failure> {
        let mut layout = std::ptr::null_mut();
        // SAFETY: writes one handle.
        checked(unsafe { (self.layout_create)(&mut layout, dtype, rows as u64, cols as u64, ld) })?;
        Ok(MatrixLayout { library: self, layout })
    }

    /// An empty search preference.
    pub fn preference(&'static self) -> Result<SearchPreference, Failure> {
        let mut preference = std::ptr::null_mut();
        // SAFETY: writes one handle.
        checked(unsafe { (self.pref_create)(&mut preference) })?;
        Ok(SearchPreference { library: self, preference })
    }

    /// At most `most` algorithms for `D = A · B`, best guess first.
    pub fn algorithms(
        &self,
        handle: LtHandle,
        description: &mut sys::cublasLtMatmulDescOpaque_t,
        [a, b, d]: [&MatrixLayout; 3],
        preference: &SearchPreference,
        most: usize,
    ) -> Result<Vec<Found>, Failure> {
        let empty = Heuristic {
            algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut found = vec![empty; most];
        let mut count = 0;
        // SAFETY: every handle is live; the array has as many entries as the
        // call is told.
        checked(unsafe {
            (self.heuristic)(
                handle.0,
                description,
                a.layout,
                b.layout,
                d.layout,
                d.layout,
                preference.preference,
                c_int::try_from(most).unwrap_or(c_int::MAX),
                found.as_mut_ptr(),
                &mut count,
            )
        })?;
        found.truncate(usize::try_from(count).unwrap_or(0));
        found.retain(|candidate| candidate.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        let with_config =
            |result: Heuristic| Found { result, config: self.config_of(&result.algo) };
        Ok(found.into_iter().map(with_config).collect())
    }

    fn config_of(&self, algorithm: &sys::cublasLtMatmulAlgo_t) -> Config {
        ATTRIBUTES.map(|(attribute, bytes)| {
            let (mut value, mut written) = (0u32, 0);
            let to = (&raw mut value).cast();
            // SAFETY: writes at most `bytes`, which are no more than `value` has.
            let status = unsafe { (self.config)(algorithm, attribute, to, bytes, &mut written) };
            // As good as any other value, if it says the same next time.
            checked(status).map_or(u32::MAX, |()| value)
        })
    }

    /// `D = alpha · A · B + beta · D` with the description's epilogue.
    ///
    /// # Safety
    /// The handle's context is current; addresses are valid on it for their
    /// layouts until the stream has passed this point; the scalars are of the
    /// description's scale type; the workspace is as large as the algorithm
    /// says.
    #[allow(clippy::too_many_arguments)] // cublasLtMatmul has sixteen.
    pub unsafe fn matmul(
        &self,
        handle: LtHandle,
        description: &mut sys::cublasLtMatmulDescOpaque_t,
        [alpha, beta]: [*const c_void; 2],
        [a, b, d]: [usize; 3],
        [a_layout, b_layout, d_layout]: [&MatrixLayout; 3],
        algorithm: &Found,
        workspace: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        // SAFETY: forwarded; layouts are live by their borrow.
        checked(unsafe {
            (self.matmul)(
                handle.0,
                description,
                alpha,
                a as *const c_void,
                a_layout.layout,
                b as *const c_void,
                b_layout.layout,
                beta,
                d as *const c_void,
                d_layout.layout,
                d as *mut c_void,
                d_layout.layout,
                &algorithm.result.algo,
                workspace as *mut c_void,
                algorithm.result.workspaceSize,
                stream,
            )
        })
    }
}

/// A handle of one context, made by [`CublasLt::create`] and never destroyed.
#[derive(Clone, Copy)]
pub struct LtHandle(Handle);

// SAFETY: a cuBLASLt handle holds no per-thread state ("cublasLt functions are
// thread-safe with one handle", its documentation).
unsafe impl Send for LtHandle {}
// SAFETY: as above.
unsafe impl Sync for LtHandle {}

/// An owned matrix layout.
pub struct MatrixLayout {
    library: &'static CublasLt,
    layout: Layout,
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: made by `CublasLt::layout`, destroyed here only. A failure
        // leaks a few bytes.
        let _ = unsafe { (self.library.layout_destroy)(self.layout) };
    }
}

/// An owned search preference.
pub struct SearchPreference {
    library: &'static CublasLt,
    preference: Preference,
}

impl SearchPreference {
    /// Sets one attribute; `T` is the attribute's type in cublasLt.h.
    pub fn set<T>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), Failure> {
        // SAFETY: as in `CublasLt::set`.
        checked(unsafe {
            (self.library.pref_set)(
                self.preference,
                attribute,
                (&raw const value).cast(),
                size_of::<T>(),
            )
        })
    }
}

impl Drop for SearchPreference {
    fn drop(&mut self) {
        // SAFETY: made by `CublasLt::preference`, destroyed here only.
        let _ = unsafe { (self.library.pref_destroy)(self.preference) };
    }
}
