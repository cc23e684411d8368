//! A core's data caches, as its CPU describes them.

use std::sync::OnceLock;

/// Ways of the first level and bytes of the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caches {
    /// So many lines whose addresses are a multiple of 4 KiB apart stay beside each other.
    pub ways: usize,
    /// The second level, where no other core's data is.
    pub second: usize,
}

/// Where a CPU does not say: the least that CPUs with AVX2 have, or nearly all.
const USUAL: Caches = Caches { ways: 8, second: 256 << 10 };

/// This CPU's, asked once.
pub fn caches() -> Caches {
    static CACHES: OnceLock<Caches> = OnceLock::new();
    *CACHES.get_or_init(|| described().unwrap_or(USUAL))
}

/// What `CPUID` has: leaf 4, on AMD's CPUs the same under another number. Miri has none.
#[cfg(all(target_arch = "x86_64", not(miri)))]
fn described() -> Option<Caches> {
    use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};
    const LEAVES: [u32; 2] = [4, 0x8000_001d];
    /// Descriptions that a leaf has at most; the type 0 ends them.
    const MOST: u32 = 16;
    let last = |leaf: u32| __cpuid(leaf & 0x8000_0000).eax;
    for leaf in LEAVES.into_iter().filter(|leaf| last(*leaf) >= *leaf) {
        let mut found = (None, None);
        for CpuidResult { eax, ebx, ecx, .. } in (0..MOST).map(|i| __cpuid_count(leaf, i)) {
            let field = |from: u32, bits: u32| (ebx >> from & ((1 << bits) - 1)) as usize + 1;
            let (line, parts, ways) = (field(0, 12), field(12, 10), field(22, 10));
            match (eax & 31, eax >> 5 & 7) {
                (0, _) => break,
                // Data, or data and instructions.
                (1 | 3, 1) => found.0 = Some(ways),
                (1 | 3, 2) => found.1 = Some(line * parts * ways * (ecx as usize + 1)),
                _ => {}
            }
        }
        if let (Some(ways), Some(second)) = found {
            return Some(Caches { ways, second });
        }
    }
    None
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
fn described() -> Option<Caches> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_such_as_cpus_have() {
        let Caches { ways, second } = caches();
        assert!((2..=64).contains(&ways), "{ways}");
        assert!((64 << 10..=64 << 20).contains(&second) && second.is_multiple_of(4096), "{second}");
    }

    /// The kernel's own reading of the same, where it has one.
    #[test]
    fn the_kernel_says_the_same() {
        let read = |index: usize, what: &str| {
            let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/{what}");
            std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
        };
        for index in 0..4 {
            let (Some(level), Some(kind)) = (read(index, "level"), read(index, "type")) else {
                continue;
            };
            match (level.as_str(), kind.as_str()) {
                ("1", "Data") => {
                    let ways = read(index, "ways_of_associativity").expect("beside its level");
                    assert_eq!(ways, caches().ways.to_string());
                }
                ("2", _) => {
                    let size = read(index, "size").expect("beside its level");
                    assert_eq!(size, format!("{}K", caches().second >> 10));
                }
                _ => {}
            }
        }
    }
}
