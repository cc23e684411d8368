//! The text of a file of plans: a line that says for what they were timed, then one
//! line a plan. Later lines count more: a plan that was timed again is appended.

use std::collections::HashSet;
use std::fmt;

use super::{hash, line, Kept, MOST, SEED};

/// Changes with the format of a line or of the header.
const FORMAT: u32 = 1;

/// Bytes of a file at most; [`MOST`] lines are less than half of it.
pub const MOST_BYTES: u64 = 4 << 20;

/// All that a choice depends on beside the product.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The device's name.
    pub device: String,
    /// Compute capability, as 90 for 9.0.
    pub capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: i64,
    /// The driver's version.
    pub driver: String,
    /// cuBLASLt's.
    pub cublaslt: usize,
    /// Scratch bytes that cuBLASLt may use.
    pub workspace_limit: usize,
    /// Our kernel that competes, and whether it comes first.
    pub kernels: String,
    /// Hash of the code that lists candidates and times them.
    pub code: u64,
}

impl fmt::Display for Header {
    /// The first line without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // What others named goes into one word of one line.
        let word = |text: &str| -> String {
            text.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect()
        };
        write!(
            f,
            "hypatia-plans {FORMAT} device={} sm={} multiprocessors={} driver={} cublaslt={} \
             hypatia={} kernels={} code={:016x} workspace={}",
            word(&self.device),
            self.capability,
            self.multiprocessors,
            word(&self.driver),
            self.cublaslt,
            env!("CARGO_PKG_VERSION"),
            word(&self.kernels),
            self.code,
            self.workspace_limit,
        )
    }
}

/// A file's name: another device, driver or version has another file.
#[must_use]
pub fn file_name(header: &str) -> String {
    format!("plans-{:016x}.txt", hash(header.as_bytes(), SEED))
}

/// What a file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Contents {
    /// At most [`MOST`], one for each product.
    pub plans: Vec<Kept>,
    /// Lines behind the header that have an end.
    pub lines: usize,
    /// Those that are no plan; empty ones are none and no damage.
    pub damaged: usize,
    /// The last line has its end. Else it is being written by another process, or that
    /// has died: no damage yet, but a line behind it begins with an end.
    pub ended: bool,
}

impl Contents {
    /// Whether the file should be written anew: lines are damaged, or it is full and not
    /// all of it counts.
    #[must_use]
    pub fn wants_rewriting(&self) -> bool {
        let full = self.lines >= MOST && self.plans.len() < self.lines;
        self.damaged > 0 || full
    }
}

/// Reads a whole file, which was made for `header` if its first line is that.
///
/// # Errors
/// Its first line (the beginning of it), when it is another one.
pub fn parse(bytes: &[u8], header: &str) -> Result<Contents, String> {
    let (first, rest) = split_line(bytes);
    if first != header.as_bytes() {
        let shown = &first[..first.len().min(300)];
        return Err(String::from_utf8_lossy(shown).into_owned());
    }
    let (mut lines, mut damaged, mut found) = (0, 0, vec![]);
    for text in rest.split_inclusive(|byte| *byte == b'\n') {
        let line = text.strip_suffix(b"\n");
        let kept = line::parse(line.unwrap_or(text));
        lines += usize::from(line.is_some());
        damaged += usize::from(kept.is_none() && line.is_some_and(|line| !line.is_empty()));
        found.extend(kept);
    }
    let mut met = HashSet::new();
    let mut plans: Vec<Kept> =
        found.into_iter().rev().filter(|kept| met.insert(kept.gemm)).take(MOST).collect();
    plans.reverse();
    Ok(Contents { plans, lines, damaged, ended: bytes.ends_with(b"\n") })
}

/// What is in front of the first line's end, and behind it.
fn split_line(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &[]),
    }
}

/// A whole file with these plans.
#[must_use]
pub fn render<'a>(header: &str, plans: impl IntoIterator<Item = &'a Kept>) -> String {
    let mut text = format!("{header}\n");
    for kept in plans {
        text.push_str(&format!("{kept}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples::{all, plan};
    use super::*;

    const HEADER: &str = "hypatia-plans 1 device=A";

    fn read(text: impl AsRef<[u8]>) -> Contents {
        parse(text.as_ref(), HEADER).unwrap()
    }

    #[test]
    fn a_file_comes_back_and_later_lines_count() {
        let written = [plan(1, 1.0), plan(2, 2.0), plan(1, 3.0)];
        let contents = read(render(HEADER, &written));
        assert_eq!(contents.plans, [plan(2, 2.0), plan(1, 3.0)]);
        assert_eq!((contents.lines, contents.damaged, contents.ended), (3, 0, true));
        assert!(!contents.wants_rewriting());
        assert_eq!(read(render(HEADER, &[])).plans, []);
    }

    #[test]
    fn a_header_is_one_line_and_all_of_it_counts() {
        let header = Header {
            device: "NVIDIA H100\n80GB é".to_owned(),
            capability: 90,
            multiprocessors: 132,
            driver: "13000 580.1".to_owned(),
            cublaslt: 130_100,
            workspace_limit: 32 << 20,
            kernels: "tensor_gemm:0123".to_owned(),
            code: 7,
        };
        let text = header.to_string();
        assert!(text.starts_with("hypatia-plans 1 device=NVIDIA_H100_80GB__ sm=90 "), "{text}");
        assert!(text.is_ascii() && !text.contains('\n'));
        let others = [
            Header { device: "NVIDIA H200".to_owned(), ..header.clone() },
            Header { capability: 100, ..header.clone() },
            Header { multiprocessors: 16, ..header.clone() },
            Header { driver: "13000 580.2".to_owned(), ..header.clone() },
            Header { cublaslt: 130_200, ..header.clone() },
            Header { workspace_limit: 0, ..header.clone() },
            Header { kernels: "none".to_owned(), ..header.clone() },
            Header { code: 8, ..header.clone() },
        ];
        let mut names: Vec<_> = others.iter().map(|h| file_name(&h.to_string())).collect();
        names.push(file_name(&text));
        names.sort();
        names.dedup();
        assert_eq!(names.len(), others.len() + 1);
        let file = render(&text, &[plan(1, 1.0)]);
        assert_eq!(parse(file.as_bytes(), &text).unwrap().plans.len(), 1);
        for other in others {
            assert_eq!(parse(file.as_bytes(), &other.to_string()), Err(text.clone()));
        }
    }

    #[test]
    fn whatever_is_cut_off_the_rest_counts() {
        let plans = [plan(1, 1.0), plan(2, 2.0), plan(3, 3.0)];
        let file = render(HEADER, &plans);
        for at in 0..=file.len() {
            let cut = &file[..at];
            if at < HEADER.len() {
                assert_eq!(parse(cut.as_bytes(), HEADER), Err(cut.to_owned()));
                continue;
            }
            let contents = read(cut);
            let ends: Vec<_> = cut.match_indices('\n').map(|(i, _)| i).collect();
            // The last line is whole without its end, too.
            let whole = file[at..].starts_with('\n') && at > HEADER.len();
            let counted = ends.len().saturating_sub(1) + usize::from(whole);
            assert_eq!(contents.plans, plans[..counted], "cut at {at}");
            assert_eq!(contents.ended, cut.ends_with('\n'), "cut at {at}");
            // As another process may have it while it writes.
            assert!(!contents.wants_rewriting(), "cut at {at}");
            let more = format!("{cut}\n{}\n", plan(4, 4.0));
            assert_eq!(read(&more).plans.last(), Some(&plan(4, 4.0)), "cut at {at}");
        }
    }

    #[test]
    fn a_changed_bit_costs_the_plans_of_its_lines_alone() {
        let plans = [plan(1, 1.0), plan(2, 2.0), plan(3, 3.0)];
        let file = render(HEADER, &plans).into_bytes();
        for bit in 0..file.len() * 8 {
            let mut changed = file.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            match parse(&changed, HEADER) {
                Err(got) => assert!(bit / 8 <= HEADER.len() && got != HEADER),
                Ok(contents) => {
                    let last = bit / 8 == file.len() - 1;
                    assert!(last || contents.damaged > 0 && contents.wants_rewriting());
                    // The end of a line that is gone takes two.
                    assert!(contents.plans.len() + 2 >= plans.len());
                    assert!(last || contents.plans.len() < plans.len());
                    assert!(contents.plans.iter().all(|kept| plans.contains(kept)));
                }
            }
        }
    }

    #[test]
    fn garbage_is_foreign_or_damage_and_never_a_plan() {
        for garbage in
            [&b""[..], b"\n", b"\0\0\0", b"\xff\xfe\n", b"other file\n", b"hypatia-plans 2"]
        {
            assert!(parse(garbage, HEADER).is_err());
        }
        let long = parse(&vec![b'x'; 1 << 20], HEADER).unwrap_err();
        assert_eq!(long.len(), 300);
        let mut file = render(HEADER, &[plan(1, 1.0)]).into_bytes();
        file.extend(b"\n\xff\n");
        file.extend(vec![b'y'; 1 << 20]);
        file.extend(format!("\n{}\n", plan(2, 2.0)).into_bytes());
        let contents = read(file);
        assert_eq!((contents.plans.len(), contents.lines, contents.damaged), (2, 5, 2));
    }

    #[test]
    fn no_more_than_the_most_are_kept_the_newest() {
        let many: Vec<_> = (0..MOST as i64 + 10).map(|m| plan(m, 1.0)).collect();
        let contents = read(render(HEADER, &many));
        assert_eq!(contents.plans, many[10..]);
        assert!(contents.wants_rewriting());
        // Full of what counts: nothing to win.
        assert!(!read(render(HEADER, &many[10..])).wants_rewriting());
        let twice: Vec<_> = (0..MOST as i64).map(|m| plan(m / 2, 1.0)).collect();
        let contents = read(render(HEADER, &twice));
        assert!(contents.wants_rewriting() && contents.plans.len() == MOST / 2);
        assert!(read(render(HEADER, &twice[..MOST - 1])).plans.len() == MOST / 2);
        assert!(!read(render(HEADER, &twice[..MOST - 1])).wants_rewriting());
    }

    #[test]
    fn the_most_plans_fit_into_the_most_bytes() {
        let longest = all().iter().map(|kept| kept.to_string().len() + 1).max().unwrap();
        assert!((longest * MOST) as u64 * 3 / 2 < MOST_BYTES, "{longest}");
    }
}
