//! The checksum of zip archives. LibTorch does not look at it.

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut n = 0;
    while n < 256 {
        let mut value = n as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        tables[0][n] = value;
        n += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut n = 0;
        while n < 256 {
            let below = tables[k - 1][n];
            tables[k][n] = (below >> 8) ^ tables[0][(below & 0xff) as usize];
            n += 1;
        }
        k += 1;
    }
    tables
}

/// The checksum so far; begin with `Crc32::default()`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Crc32(u32);

impl Crc32 {
    /// With more bytes. Eight at a time: models have gigabytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut value = !self.0;
        let mut eights = bytes.chunks_exact(8);
        for eight in &mut eights {
            let mut next = 0;
            for (n, byte) in eight.iter().enumerate() {
                let mixed = if n < 4 { byte ^ (value >> (8 * n)) as u8 } else { *byte };
                next ^= TABLES[7 - n][mixed as usize];
            }
            value = next;
        }
        for byte in eights.remainder() {
            value = (value >> 8) ^ TABLES[0][(value as u8 ^ byte) as usize];
        }
        self.0 = !value;
    }

    /// The checksum.
    #[must_use]
    pub fn value(self) -> u32 {
        self.0
    }

    /// Of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> u32 {
        let mut crc = Self::default();
        crc.update(bytes);
        crc.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_s_check_value() {
        assert_eq!(Crc32::of(b"123456789"), 0xcbf4_3926);
        assert_eq!(Crc32::of(b""), 0);
        assert_eq!(Crc32::of(b"The quick brown fox jumps over the lazy dog"), 0x414f_a339);
    }

    #[test]
    fn pieces_make_the_same_as_the_whole() {
        let bytes: Vec<u8> = (0..100u8).map(|n| n.wrapping_mul(37)).collect();
        for cut in 0..bytes.len() {
            let mut crc = Crc32::default();
            crc.update(&bytes[..cut]);
            crc.update(&bytes[cut..]);
            assert_eq!(crc.value(), Crc32::of(&bytes), "{cut}");
        }
    }
}
