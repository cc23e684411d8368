//! For programs whose input may crash LibTorch (it trusts its files): a fatal
//! signal ends in one sentence and status 2, and no temporary file stays.
#![allow(unsafe_code)] // Signal handlers.

use std::ffi::{c_char, c_int, c_void, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

static STAGE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static STAGE_LENGTH: AtomicUsize = AtomicUsize::new(0);
static TEMPORARY: [AtomicPtr<c_char>; 2] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 2];

/// From here on. Replaces what the Rust runtime says of a stack overflow, and
/// needs the alternate stack that it gives the main thread.
pub fn watch() {
    let fatal = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT];
    for signal in fatal {
        install(signal, told);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        install(signal, swept);
    }
}

/// What the program is doing to its input: `loading`, `running`, …
pub fn stage(name: &'static str) {
    // Length 0 in between: the handler never sees one's address with the
    // other's length.
    STAGE_LENGTH.store(0, Ordering::SeqCst);
    STAGE.store(name.as_ptr().cast_mut(), Ordering::SeqCst);
    STAGE_LENGTH.store(name.len(), Ordering::SeqCst);
}

/// Files to remove when the process dies; none of them is ours any more once
/// the next call leaves it out.
pub fn temporary(paths: [Option<&Path>; 2]) {
    for (place, path) in TEMPORARY.iter().zip(paths) {
        let path = path.and_then(|path| CString::new(path.as_os_str().as_bytes()).ok());
        // The old text is leaked: a handler may be reading it.
        place.store(path.map_or(std::ptr::null_mut(), CString::into_raw), Ordering::SeqCst);
    }
}

fn install(signal: c_int, handler: extern "C" fn(c_int)) {
    // SAFETY: a zeroed sigaction is a valid one, both handlers only call
    // async-signal-safe functions, and pointers live through the call.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(signal, &action, std::ptr::null_mut());
    }
}

fn sweep() {
    for place in &TEMPORARY {
        let path = place.load(Ordering::SeqCst);
        if !path.is_null() {
            // SAFETY: a C string that `temporary` leaked.
            unsafe { libc::unlink(path) };
        }
    }
}

fn write(bytes: &[u8]) {
    // SAFETY: a live slice; a handler can do nothing about a failure.
    unsafe { libc::write(2, bytes.as_ptr().cast::<c_void>(), bytes.len()) };
}

extern "C" fn told(signal: c_int) {
    sweep();
    write(b"hypatia-opt: expected an archive that LibTorch survives, got signal ");
    let signal = signal.unsigned_abs() as u8;
    if signal >= 10 {
        write(&[b'0' + signal / 10 % 10]);
    }
    write(&[b'0' + signal % 10]);
    let length = STAGE_LENGTH.load(Ordering::SeqCst);
    if length > 0 {
        write(b" while ");
        // SAFETY: address and length of one &'static str; see `stage`.
        write(unsafe { std::slice::from_raw_parts(STAGE.load(Ordering::SeqCst), length) });
        write(b" it");
    }
    write(b"\n");
    // SAFETY: does not return and runs nothing of a process in ruins.
    unsafe { libc::_exit(2) };
}

extern "C" fn swept(signal: c_int) {
    sweep();
    // SAFETY: both are async-signal-safe; SA_RESETHAND made the default
    // action current again, and it is delivered when the handler returns.
    unsafe { libc::raise(signal) };
}
