import ctypes, json, os, statistics, sys, time
import torch
import torch.nn.functional as F
import plan as planner
HERE = os.path.dirname(os.path.abspath(__file__))
cuda = ctypes.CDLL("libcuda.so.1")
def ok(code, what=""):
    if code: raise RuntimeError(f"cuda error {code} {what}")

class Layer(ctypes.Structure):
    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("n", ctypes.c_int), ("k", ctypes.c_int),
                ("ld", ctypes.c_int), ("chunks", ctypes.c_ushort), ("tiles", ctypes.c_ushort), ("groups", ctypes.c_ushort),
                ("shift", ctypes.c_ushort), ("dense", ctypes.c_int)]
class Params(ctypes.Structure):
    _fields_ = [("input", ctypes.c_void_p), ("output", ctypes.c_void_p), ("rows", ctypes.c_int), ("layers", ctypes.c_int),
                ("input_ld", ctypes.c_int), ("output_ld", ctypes.c_int), ("relu_last", ctypes.c_int), ("input_dense", ctypes.c_int),
                ("slots", ctypes.c_int), ("act_bytes", ctypes.c_int), ("layer", Layer * 16)]
assert ctypes.sizeof(Layer) == 40 and ctypes.sizeof(Params) == 688
class Attr(ctypes.Structure):
    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_int), ("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint),
                ("rest", ctypes.c_char * 52)]
assert ctypes.sizeof(Attr) == 72
class Config(ctypes.Structure):
    _fields_ = [("g", ctypes.c_uint * 3), ("b", ctypes.c_uint * 3), ("smem", ctypes.c_uint), ("stream", ctypes.c_void_p),
                ("attrs", ctypes.POINTER(Attr)), ("n", ctypes.c_uint)]

class Module:
    def __init__(self, path):
        torch.cuda.current_stream()
        torch.zeros(1, device="cuda")
        image = open(path, "rb").read()
        self.m = ctypes.c_void_p()
        ok(cuda.cuModuleLoadData(ctypes.byref(self.m), image), path)
        self.f = {}
    def get(self, name):
        if name not in self.f:
            f = ctypes.c_void_p()
            ok(cuda.cuModuleGetFunction(ctypes.byref(f), self.m, name.encode()), name)
            ok(cuda.cuFuncSetAttribute(f, 8, planner.SHARED), "smem")
            ok(cuda.cuFuncSetAttribute(f, 14, 1), "cluster")
            self.f[name] = f
        return self.f[name]
def config(grid, block, cluster, smem, stream):
    c = Config(); c.g[:] = (grid, 1, 1); c.b[:] = (block, 1, 1); c.smem = smem; c.stream = stream
    a = (Attr * 1)(); a[0].id = 4; a[0].x, a[0].y, a[0].z = cluster, 1, 1
    c.attrs = a; c.n = 1 if cluster > 1 else 0; c._keep = a
    return c
def launch(f, c, params):
    c.stream = torch.cuda.current_stream().cuda_stream
    args = (ctypes.c_void_p * 1)(ctypes.addressof(params))
    ok(cuda.cuLaunchKernelEx(ctypes.byref(c), f, args, None), "launch")
def max_clusters(f, c):
    n = ctypes.c_int()
    code = cuda.cuOccupancyMaxActiveClusters(ctypes.byref(n), f, ctypes.byref(c))
    return n.value if code == 0 else -code

DT = {"bf16": torch.bfloat16, "f16": torch.float16, "tf32": torch.float32, "f32": torch.float32}
def make(widths, M, mode, kind="normal", bias=True, seed=0):
    g = torch.Generator(device="cuda").manual_seed(seed)
    rn = lambda *s: torch.randn(*s, generator=g, device="cuda", dtype=torch.float64)
    ru = lambda *s: torch.rand(*s, generator=g, device="cuda", dtype=torch.float64)
    x = rn(M, widths[0]) if kind != "uniform" else ru(M, widths[0])
    ws, bs = [], []
    for k, n in zip(widths, widths[1:]):
        if kind == "uniform": w, b = ru(n, k) / k, ru(n)
        else: w, b = rn(n, k) * (2.0 / k) ** 0.5, rn(n) * 0.1
        if kind == "cancel" :  # pairs of columns that almost cancel
            w[:, 1::2] = -w[:, 0:k - (k % 2):2] * (1 + 1e-4 * rn(n, k // 2))
        ws.append(w); bs.append(b)
    if kind == "cancel": x[:, 1::2] = x[:, 0:widths[0] - widths[0] % 2:2] * (1 + 1e-4 * rn(M, widths[0] // 2)); x = x * 100
    d = DT[mode]
    return x.to(d), [w.to(d) for w in ws], [b.to(d) if bias else None for b in bs]
def eager(x, ws, bs):
    for i, (w, b) in enumerate(zip(ws, bs)):
        x = F.linear(x, w, b)
        if i + 1 < len(ws): x = torch.relu(x)
    return x
def act(x, ws, bs):
    for w, b in zip(ws[:-1], bs[:-1]): x = torch._addmm_activation(b, x, w.t())
    return F.linear(x, ws[-1], bs[-1])
def exact(x, ws, bs):
    return eager(x.double(), [w.double() for w in ws], [None if b is None else b.double() for b in bs])

class Ours:
    def __init__(self, module, x, ws, bs, mode, R, S, slots=None, relu_last=0, out=None):
        self.widths = [ws[0].shape[1]] + [w.shape[0] for w in ws]
        lay = planner.layout(self.widths, mode, R, S, slots)
        if lay is None: raise ValueError("does not fit")
        smem, slots, actb = lay
        ls = planner.layers(self.widths, mode, S)
        self.out = torch.full((x.shape[0], self.widths[-1]), float("nan"), device="cuda", dtype=x.dtype) if out is None else out
        p = Params(); p.input = x.data_ptr(); p.output = self.out.data_ptr(); p.rows = x.shape[0]; p.layers = len(ws)
        p.input_ld = x.stride(0); p.output_ld = self.out.stride(0); p.relu_last = relu_last; p.slots = slots; p.act_bytes = actb
        es = x.element_size()
        al = lambda t: t.data_ptr() % 16 == 0 and t.stride(0) * es % 16 == 0
        p.input_dense = al(x)
        for i, w in enumerate(ws):
            m = p.layer[i]
            m.weight = w.data_ptr(); m.bias = 0 if bs[i] is None else bs[i].data_ptr()
            m.n, m.k = w.shape; m.ld = w.stride(0); m.dense = al(w)
            m.chunks, m.tiles, m.shift, m.groups = ls[i]
        self.p, self.keep = p, (x, ws, bs)
        self.f = module.get(f"fused_mlp_{mode}_r{R}")
        self.c = config(-(-x.shape[0] // R) * S, R * 16 + 128, S, smem, None)
        self.info = f"R{R} S{S} sl{slots}"
    def __call__(self):
        launch(self.f, self.c, self.p); return self.out

def capture(fn):
    s = torch.cuda.Stream()
    with torch.cuda.stream(s):
        for _ in range(3): fn()
    torch.cuda.synchronize()
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g): keep = fn()
    g._keep = keep
    return g
def time_graphs(graphs, rounds=9, repeats=100):
    """Median µs of a replay for each, alternated."""
    out = {k: [] for k in graphs}
    for g in graphs.values():
        for _ in range(20): g.replay()
    for _ in range(rounds):
        for k, g in graphs.items():
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            g.replay(); a.record()
            for _ in range(repeats): g.replay()
            b.record(); b.synchronize()
            out[k].append(a.elapsed_time(b) * 1e3 / repeats)
    return {k: statistics.median(v) for k, v in out.items()}
def rel(a, ref):
    return ((a.double() - ref).norm() / ref.norm()).item()
def set_mode(mode):
    torch.backends.cuda.matmul.allow_tf32 = mode == "tf32"
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

SHAPES = {"tiny-64": ([784, 256, 256, 10], 64), "tiny-256": ([784, 256, 256, 10], 256),
          "small-128": ([512, 512, 512, 512, 128], 128), "medium3-256": ([784, 512, 512, 512, 128], 256),
          "medium4-256": ([1024, 512, 512, 512, 512, 256], 256)}
ODD = [([37, 129, 63], m) for m in (1, 7, 16, 17, 33, 64)] + [([64, 64], 5), ([13, 512, 256, 64], 50), ([8, 8, 8], 3),
      ([784, 10], 20), ([256, 1024, 512, 1], 40), ([100, 36, 300, 20, 7], 31), ([1000, 24, 1000], 19),
      ([64] + [64] * 16, 33), ([40, 200, 8, 600, 72, 16], 64)]
