//! Which timed plans a device takes from other processes and leaves to them
//! (`HYPATIA_PLAN_CACHE`): none in deterministic mode, whose choices must not depend on
//! what ran before, and none where timing is off.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::OnceLock;

use cudarc::driver::sys as driver;

use super::algorithm::Algorithm;
use super::device::Device;
use super::modules::IMAGES;
use super::plan_file::{PlanFile, Trouble};
use super::product::log_line;
use super::{notice, tune};
use crate::plan::kept::place::{self, Place};
use crate::plan::kept::text::Header;
use crate::plan::kept::{hash, Kept, SEED};
use crate::plan::problem::Gemm;
use crate::plan::tuning::Tuning;

/// Changes with the code that lists candidates and chooses among them.
const CODE: u64 = {
    let state = hash(include_bytes!("gemm.rs"), SEED);
    let state = hash(include_bytes!("tune.rs"), state);
    let state = hash(include_bytes!("../plan/tensor_gemm.rs"), state);
    hash(include_bytes!("../plan/tuning.rs"), state)
};

/// Plans taken from files so far.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

/// A device's file, read when the first product asks.
#[derive(Default)]
pub struct KeptPlans(OnceLock<Option<PlanFile>>);

impl KeptPlans {
    /// None where the user wants none or has no place for it.
    fn file(&self, device: &Device) -> Option<&PlanFile> {
        let read = || {
            let (file, trouble) = PlanFile::open(&place()?.folder, &header(device));
            log_line(|| format!("{} timed plans in {}", file.known(), file.path().display()));
            if let Some(trouble) = trouble {
                tell(trouble);
            }
            Some(file)
        };
        self.0.get_or_init(read).as_ref()
    }
}

/// What another process chose for a product, with its file.
pub fn hint<'a>(device: &'a Device, gemm: &Gemm) -> Option<(Kept, &'a Path)> {
    if gemm.deterministic || !tune::wanted().takes_kept_plans() {
        return None;
    }
    let file = device.kept_plans.file(device)?;
    Some((file.find(gemm)?, file.path()))
}

/// A hint was among the product's candidates.
pub fn count_taken() {
    TAKEN.fetch_add(1, Ordering::Relaxed);
}

/// Leaves what was timed to other processes.
pub fn keep(device: &Device, gemm: &Gemm, algorithm: &Algorithm, us: Option<f32>) {
    if gemm.deterministic || tune::wanted() == Tuning::Off {
        return;
    }
    if let Some(file) = device.kept_plans.file(device) {
        let kept = file.keep(Kept::new(gemm, algorithm.choice(), us));
        kept.unwrap_or_else(tell);
    }
}

/// Plans taken from files so far, for `build_info`.
pub fn plans_taken() -> usize {
    TAKEN.load(Ordering::Relaxed)
}

/// The folder of the files, if they are used, for `build_info`.
pub fn folder() -> Option<&'static Path> {
    Some(&place()?.folder)
}

fn place() -> Option<&'static Place> {
    static PLACE: OnceLock<Option<Place>> = OnceLock::new();
    let find = || {
        if tune::wanted() == Tuning::Off {
            return None;
        }
        let variable = |name| std::env::var_os(name);
        let place = place::place(
            variable("HYPATIA_PLAN_CACHE").as_deref(),
            variable("XDG_CACHE_HOME").as_deref(),
            variable("HOME").as_deref(),
        )?;
        // Programs change their directory.
        let folder = std::path::absolute(&place.folder).unwrap_or(place.folder);
        Some(Place { folder, ..place })
    };
    PLACE.get_or_init(find).as_ref()
}

/// One warning a process, the first that the user should hear.
fn tell(trouble: Trouble) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    let named = place().is_some_and(|place| place.named);
    if (trouble.damage || named) && !TOLD.swap(true, Ordering::Relaxed) {
        notice::add(trouble.sentence);
    } else {
        log_line(|| trouble.sentence);
    }
}

fn header(device: &Device) -> Header {
    let kernels = match &device.modules.tensor_gemm {
        Err(_) => "none".to_owned(),
        Ok(kernel) => {
            let images = IMAGES.iter().filter(|image| image.kernel == "tensor_gemm");
            let sum = images.fold(SEED, |state, image| hash(image.bytes, state));
            let place = if kernel.always { "first" } else { "beside" };
            format!("tensor_gemm:{place}:{sum:016x}")
        }
    };
    Header {
        device: device.name(),
        capability: device.capability,
        multiprocessors: device.multiprocessors,
        driver: driver_version(),
        cublaslt: device.cublaslt().version(),
        workspace_limit: device.gemm_workspace_limit,
        kernels,
        code: CODE,
    }
}

/// The CUDA version it is made for, and its own where Linux says it.
fn driver_version() -> String {
    let mut cuda = 0;
    // SAFETY: writes one number; a failure leaves 0.
    let _ = unsafe { driver::cuDriverGetVersion(&mut cuda) };
    let own = std::fs::read_to_string("/sys/module/nvidia/version");
    format!("{cuda}:{}", own.as_deref().unwrap_or("").trim())
}
