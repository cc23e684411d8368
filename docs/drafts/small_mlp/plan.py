"""Which instance of the kernel runs which problem; plain arithmetic, to be ported to Rust."""
PACKET = {"bf16": 8, "f16": 8, "tf32": 4, "f32": 4}  # elements of 16 bytes
SHARED = 232448  # bytes a block may have on sm_90
SLOT = 32 * 576
ceil = lambda a, b: -(-a // b)

def layers(widths, mode, blocks):
    """Per layer: chunks of K, column tiles, shift, groups."""
    chunk = 4 * PACKET[mode]
    out = []
    for l in range(len(widths) - 1):
        k, n = widths[l], widths[l + 1]
        tiles = ceil(n, 8) if l == len(widths) - 2 else ceil(n, chunk) * chunk // 8
        shift = next((s for s in (0, 1, 2) if ceil(tiles, 1 << s) <= blocks), 2)
        out.append((ceil(k, chunk), tiles, shift, ceil(tiles, 1 << shift)))
    return out

def layout(widths, mode, rows, blocks, slots=None, limit=SHARED):
    """(shared bytes, slots, act_bytes) or None if it does not fit."""
    ls = layers(widths, mode, blocks)
    teams = rows // 16
    act = max([c * 16 * 64 for c, *_ in ls[1:]], default=0)
    need = sum((1 + ceil(rows, 32) if l == 0 else 1) * ceil(c, 8) * ceil(g, blocks) for l, (c, _, _, g) in enumerate(ls))
    barriers = ceil((2 * 16 + 64 + 2) * 8, 128) * 128
    fixed = barriers + teams * (2 * act + 8 * 16 * 32 * 4)
    fit = min((limit - fixed) // SLOT, need, 32)
    slots = slots or fit
    if slots > fit or slots < min(need, 3):
        return None
    return fixed + slots * SLOT, slots, act


def plan(M, widths, mode, clusters):
    """(kernel, grid, block, cluster, shared bytes) or None: the cuBLASLt chain is better or must do.

    clusters: cluster size -> how many the device runs at once with SHARED bytes
    a block (cuOccupancyMaxActiveClusters; H200: {16: 7, 8: 15}). One wave only.
    Limits are where measurements end or the chain measured faster (NOTES.md).
    """
    if not 1 <= len(widths) - 1 <= 16 or M < (1 if mode in ("bf16", "f16") else 32):
        return None  # one row in fp32: eager's matrix-vector kernels are faster
    wide = max(widths[1:])
    if wide > 512 or widths[0] > 1024:
        return None
    order = [(16, 16), (32, 16), (16, 8), (32, 8)] if mode != "tf32" else [(16, 16), (16, 8), (32, 16), (32, 8)]
    for rows, blocks in order:
        tiles = ceil(M, rows)
        if tiles > clusters.get(blocks, 0):
            continue
        if wide > 256 and (rows, blocks) not in {"f32": ((16, 16),), "tf32": ((16, 16), (16, 8))}.get(mode, ((16, 16), (32, 16))):
            continue
        lay = layout(widths, mode, rows, blocks)
        if lay:
            return f"fused_mlp_{mode}_r{rows}", tiles * blocks, rows * 16 + 128, blocks, lay[0]
    return None
