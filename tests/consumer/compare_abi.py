"""compare_abi.py ROOT: hypatia.h declares the functions of src/capi.rs, type by
type and name by name, with the same ABI version; nothing else checks the names,
and two arguments of one type are swapped as easily as not."""

import re
import sys
from pathlib import Path

C_TYPES = {
    "*const Tensor": "const HypatiaTensor*",
    "*const *const Tensor": "const HypatiaTensor* const*",
    "*mut Tensor": "HypatiaTensor*",
    "*mut *mut Tensor": "HypatiaTensor**",
    "*const Module": "const HypatiaModule*",
    "*mut Module": "HypatiaModule*",
    "*mut *mut Module": "HypatiaModule**",
    "*const c_char": "const char*",
    "*mut c_char": "char*",
    "*mut *mut c_char": "char**",
    "u32": "uint32_t",
    "i32": "int32_t",
    "i64": "int64_t",
    "": "void",
}


def rust_declarations(text: str) -> set[str]:
    pattern = r'extern "C" fn (hypatia_\w+)\(([^)]*)\)(?: -> ([^{]+))? \{'
    found = set()
    for name, arguments, result in re.findall(pattern, text):
        pairs = [a.split(":") for a in arguments.split(",") if a.strip()]
        listed = ", ".join(f"{C_TYPES[t.strip()]} {n.strip()}" for n, t in pairs)
        found.add(f"{C_TYPES[result.strip()]} {name}({listed or 'void'})")
    return found


def c_declarations(text: str) -> set[str]:
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    pattern = r"^([\w* ]+ hypatia_\w+\([^)]*\));"
    return {" ".join(d.split()) for d in re.findall(pattern, text, flags=re.M)}


def number(pattern: str, text: str) -> str:
    return re.search(pattern, text).group(1)


def main(root: Path) -> int:
    header = (root / "include/hypatia/hypatia.h").read_text()
    rust = rust_declarations((root / "src/capi.rs").read_text())
    rust.add("ABI version " + number(r"ABI_VERSION: u32 = (\d+);", (root / "src/lib.rs").read_text()))
    c = c_declarations(header)
    c.add("ABI version " + number(r"#define HYPATIA_ABI_VERSION (\d+)u", header))
    for line in sorted(rust - c):
        print(f"only in Rust: {line}")
    for line in sorted(c - rust):
        print(f"only in hypatia.h: {line}")
    return int(rust != c or len(c) < 2)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
