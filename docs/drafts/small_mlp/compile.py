"""NVRTC: source -> cubin, with the options of build/kernels.rs."""
import ctypes, glob, os, sys
def nvrtc_paths():
    import importlib.util
    spec = importlib.util.find_spec("nvidia")
    for base in list(spec.submodule_search_locations):
        lib = os.path.join(base, "cu13", "lib")
        if os.path.exists(os.path.join(lib, "libnvrtc.so.13")):
            return lib, os.path.join(base, "cu13", "include")
    raise SystemExit("no nvrtc")
def compile(path, arch="sm_90a", extra=()):
    lib, inc = nvrtc_paths()
    ctypes.CDLL(glob.glob(os.path.join(lib, "libnvrtc-builtins.so*"))[0], ctypes.RTLD_GLOBAL)
    n = ctypes.CDLL(os.path.join(lib, "libnvrtc.so.13"))
    here = os.path.dirname(os.path.abspath(path))
    src = open(path, "rb").read()
    opts = [f"--gpu-architecture={arch}", "--std=c++17", "-default-device", "--generate-line-info",
            f"--include-path={here}", f"--include-path={inc}", "--ptxas-options=-v", *extra]
    prog = ctypes.c_void_p()
    assert n.nvrtcCreateProgram(ctypes.byref(prog), src, path.encode(), 0, None, None) == 0
    arr = (ctypes.c_char_p * len(opts))(*[o.encode() for o in opts])
    st = n.nvrtcCompileProgram(prog, len(opts), arr)
    size = ctypes.c_size_t()
    n.nvrtcGetProgramLogSize(prog, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    n.nvrtcGetProgramLog(prog, log)
    if st:
        raise SystemExit(log.value.decode())
    n.nvrtcGetCUBINSize(prog, ctypes.byref(size))
    out = ctypes.create_string_buffer(size.value)
    n.nvrtcGetCUBIN(prog, out)
    return out.raw[:size.value], log.value.decode()
if __name__ == "__main__":
    image, log = compile(sys.argv[1], extra=sys.argv[3:])
    open(sys.argv[2], "wb").write(image)
    print(log)
