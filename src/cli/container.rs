//! Whether a file is a whole TorchScript archive, before LibTorch reads it:
//! LibTorch's own messages do not tell a text file from a cut one, and it does
//! not compare checksums.

use std::collections::HashSet;
use std::io::{self, Read, Seek, SeekFrom};

use super::crc32::Crc32;

/// One file of the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Without the folder that all are in.
    pub name: String,
    /// Compressed (deflate), so that the checksum is not of the file's bytes.
    pub compressed: bool,
    /// The checksum.
    pub crc: u32,
    packed: u64,
    header: u64,
}

/// What the archive has, each stored member compared with its checksum; it is
/// the caller who decompresses the others.
///
/// # Errors
/// What it is instead of a TorchScript archive.
pub fn members<F: Read + Seek>(file: &mut F) -> Result<Vec<Member>, String> {
    let length = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
    if length == 0 {
        return Err("an empty file".into());
    }
    let Some(directory) = directory(file, length).map_err(unreadable)? else {
        return Err(kind(&read(file, 0, length.min(512)).map_err(unreadable)?));
    };
    let mut members = list(&directory).ok_or("a zip archive whose list of files is damaged")?;
    let folder = members[0].name.split('/').next().unwrap_or_default().to_owned() + "/";
    for member in &mut members {
        if let Some(name) = member.name.strip_prefix(&folder) {
            member.name = name.to_owned();
        }
    }
    let names: HashSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    if names.len() < members.len() {
        return Err("a zip archive that has a file twice".into());
    }
    if !names.contains("constants.pkl") || !names.contains("data.pkl") {
        return Err(other_archive(&names));
    }
    for member in &members {
        if !intact(file, length, member).map_err(unreadable)? {
            return Err(damaged(&member.name));
        }
    }
    Ok(members)
}

/// How to say that a member's checksum is wrong.
#[must_use]
pub fn damaged(name: &str) -> String {
    format!("a damaged one: the checksum of {name:?} in it does not fit")
}

#[allow(clippy::needless_pass_by_value)] // For map_err.
fn unreadable(error: io::Error) -> String {
    format!("a file that cannot be read: {error}")
}

fn read<F: Read + Seek>(file: &mut F, at: u64, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = vec![];
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?).into())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?).into())
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// The bytes of the central directory, found from the file's end; `None` if
/// there is none.
fn directory<F: Read + Seek>(file: &mut F, length: u64) -> io::Result<Option<Vec<u8>>> {
    // The end record, and in front of it a comment's 64 KiB at most.
    let tail_at = length.saturating_sub((1 << 16) + 22);
    let tail = read(file, tail_at, length - tail_at)?;
    let whole = |n: usize| {
        let comment = u16_at(&tail, n + 20).map_or(tail.len(), |length| length as usize);
        tail[n..].starts_with(b"PK\x05\x06") && n + 22 + comment <= tail.len()
    };
    let Some(end) = (0..tail.len()).rev().find(|n| whole(*n)) else {
        return Ok(None);
    };
    let (mut size, mut at) = (u32_at(&tail, end + 12), u32_at(&tail, end + 16));
    if at == Some(0xffff_ffff) || size == Some(0xffff_ffff) {
        // zip64: a locator just before says where the real record is.
        let locator = end.checked_sub(20).map(|n| &tail[n..]).unwrap_or_default();
        let record = match u64_at(locator, 8).filter(|_| locator.starts_with(b"PK\x06\x07")) {
            Some(record) if record < length => read(file, record, 56)?,
            _ => return Ok(None),
        };
        (size, at) = (u64_at(&record, 40), u64_at(&record, 48));
    }
    match (size, at) {
        (Some(size), Some(at)) if at.checked_add(size).is_some_and(|end| end <= length) => {
            read(file, at, size).map(Some)
        }
        _ => Ok(None),
    }
}

fn list(directory: &[u8]) -> Option<Vec<Member>> {
    let mut members = vec![];
    let mut at = 0;
    while at < directory.len() {
        let entry = directory.get(at..at + 46)?;
        if !entry.starts_with(b"PK\x01\x02") {
            return None;
        }
        let lengths = [u16_at(entry, 28)?, u16_at(entry, 30)?, u16_at(entry, 32)?];
        let [name, extra, comment] = lengths.map(|length| length as usize);
        let extra_at = at + 46 + name;
        let compressed = match u16_at(entry, 10)? {
            0 => false,
            8 => true,
            _ => return None,
        };
        let (packed, header) = zip64(
            directory.get(extra_at..extra_at + extra)?,
            [u32_at(entry, 24)?, u32_at(entry, 20)?, u32_at(entry, 42)?],
        )?;
        members.push(Member {
            name: String::from_utf8_lossy(directory.get(at + 46..extra_at)?).into_owned(),
            compressed,
            crc: u32_at(entry, 16)? as u32,
            packed,
            header,
        });
        at = extra_at + extra + comment;
    }
    (!members.is_empty() && at == directory.len()).then_some(members)
}

/// Packed size and header's place, from the 64-bit extra field where the 32-bit
/// ones are full. They come in this order: size, packed size, place.
fn zip64(extra: &[u8], [size, mut packed, mut header]: [u64; 3]) -> Option<(u64, u64)> {
    let mut at = 0;
    while at + 4 <= extra.len() {
        let (id, length) = (u16_at(extra, at)?, u16_at(extra, at + 2)? as usize);
        if id == 1 {
            let mut next = at + 4;
            let mut full = size == 0xffff_ffff;
            for value in [&mut 0, &mut packed, &mut header] {
                full |= *value == 0xffff_ffff;
                if full {
                    *value = u64_at(extra, next)?;
                    next += 8;
                }
                full = false;
            }
        }
        at += 4 + length;
    }
    Some((packed, header))
}

/// Whether the member's bytes are there and have its checksum.
fn intact<F: Read + Seek>(file: &mut F, length: u64, member: &Member) -> io::Result<bool> {
    let header = read(file, member.header.min(length), 30)?;
    let (Some(name), Some(extra)) = (u16_at(&header, 26), u16_at(&header, 28)) else {
        return Ok(false);
    };
    let data = member.header + 30 + name + extra;
    let end = data.checked_add(member.packed);
    if !header.starts_with(b"PK\x03\x04") || end.is_none_or(|end| end > length) {
        return Ok(false);
    }
    if member.compressed {
        return Ok(true);
    }
    file.seek(SeekFrom::Start(data))?;
    let mut left = member.packed;
    let mut crc = Crc32::default();
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let most = left.min(buffer.len() as u64) as usize;
        let got = file.read(&mut buffer[..most])?;
        if got == 0 {
            return Ok(false);
        }
        crc.update(&buffer[..got]);
        left -= got as u64;
    }
    Ok(crc.value() == member.crc)
}

/// What a file that is no zip archive is, from how it begins.
fn kind(head: &[u8]) -> String {
    if head.starts_with(b"PK\x03\x04") {
        return "a zip archive whose end is missing: the file is cut off".into();
    }
    if head.starts_with(b"\x7fELF") {
        return "a program or shared library".into();
    }
    // PROTO 2 to 5; what torch.save wrote before version 1.6 begins so.
    if head.len() > 1 && head[0] == 0x80 && (2..=5).contains(&head[1]) {
        return format!("a pickle; {SAVE}");
    }
    let text = |byte: &u8| (32..127).contains(byte) || b"\t\r\n\x0c".contains(byte);
    if std::str::from_utf8(head).is_ok() && head.iter().filter(|b| b.is_ascii()).all(text) {
        return "a text file".into();
    }
    "something that is no zip archive".into()
}

const SAVE: &str = "save the model with torch.jit.save(torch.jit.script(model), file)";

/// What a zip archive without TorchScript is, from its files.
fn other_archive(names: &HashSet<&str>) -> String {
    if names.contains("archive_format") || names.iter().any(|n| n.starts_with("models/")) {
        return "an archive of torch.export; hypatia-opt takes what torch.jit.save writes".into();
    }
    if names.contains("data.pkl") {
        return format!("what torch.save writes (a state_dict or a pickled model); {SAVE}");
    }
    "a zip archive without TorchScript in it".into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A zip archive of stored files in the folder `m`.
    fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut out, mut directory) = (vec![], vec![]);
        for (name, bytes) in files {
            let name = format!("m/{name}");
            let at = (out.len() as u32).to_le_bytes();
            let mut common = vec![0u8; 10];
            common.extend(Crc32::of(bytes).to_le_bytes());
            common.extend([bytes.len() as u32; 2].iter().flat_map(|n| n.to_le_bytes()));
            common.extend((name.len() as u16).to_le_bytes());
            common.extend([0, 0]);
            out.extend(b"PK\x03\x04");
            out.extend(&common);
            out.extend(name.as_bytes());
            out.extend(*bytes);
            directory.extend(b"PK\x01\x02\0\0");
            directory.extend(&common);
            directory.extend([0; 10]);
            directory.extend(at);
            directory.extend(name.as_bytes());
        }
        let at = out.len() as u32;
        out.extend(&directory);
        out.extend(b"PK\x05\x06\0\0\0\0");
        out.extend([files.len() as u16; 2].iter().flat_map(|n| n.to_le_bytes()));
        out.extend((directory.len() as u32).to_le_bytes());
        out.extend(at.to_le_bytes());
        out.extend([0, 0]);
        out
    }

    fn found(bytes: &[u8]) -> Result<Vec<Member>, String> {
        members(&mut Cursor::new(bytes))
    }

    const MODEL: [(&str, &[u8]); 3] =
        [("data.pkl", b"weights"), ("constants.pkl", b"none"), ("extra/a/b", b"")];

    #[test]
    fn members_have_their_names_without_the_folder() {
        let members = found(&zip(&MODEL)).unwrap();
        let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
        assert_eq!(names, ["data.pkl", "constants.pkl", "extra/a/b"]);
    }

    #[test]
    fn a_flipped_bit_anywhere_in_the_data_is_found() {
        let whole = zip(&MODEL);
        let data = whole.windows(7).position(|bytes| bytes == b"weights").unwrap();
        for at in data..data + 7 {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            assert_eq!(found(&bytes).unwrap_err(), damaged("data.pkl"));
        }
    }

    #[test]
    fn nothing_that_is_cut_or_changed_panics() {
        let whole = zip(&MODEL);
        for length in 0..whole.len() {
            assert!(found(&whole[..length]).is_err(), "{length}");
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = found(&bytes);
            }
        }
    }

    #[test]
    fn everything_else_is_named() {
        let says = |bytes: &[u8], text: &str| {
            let got = found(bytes).unwrap_err();
            assert!(got.contains(text), "{got:?} is not {text:?}");
        };
        says(b"", "an empty file");
        says(b"hello\n", "a text file");
        says("Gr\u{fc}\u{df}e\n".as_bytes(), "a text file");
        says(b"\x80\x02}q\x00.", "a pickle; save the model with torch.jit.save");
        says(b"\x7fELF\x02", "a program or shared library");
        says(b"\xff\xfe\x00\x01", "no zip archive");
        says(&zip(&MODEL)[..60], "whose end is missing");
        says(&zip(&[("data.pkl", b"")]), "what torch.save writes");
        says(&zip(&[("a.txt", b"")]), "without TorchScript in it");
        says(&zip(&[("archive_format", b"pt2")]), "torch.export");
        says(&zip(&[("data.pkl", b""), ("data.pkl", b"")]), "a file twice");
    }

    #[test]
    fn sizes_of_64_bits() {
        let mut extra = vec![9, 9, 2, 0, 7, 7, 1, 0, 24, 0];
        extra.extend([5u64, 6, 7].iter().flat_map(|n| n.to_le_bytes()));
        assert_eq!(zip64(&extra, [0xffff_ffff; 3]), Some((6, 7)));
        assert_eq!(zip64(&[], [1, 2, 3]), Some((2, 3)));
        assert_eq!(zip64(&extra[..20], [0xffff_ffff; 3]), None);
        let mut only_place = vec![1, 0, 8, 0];
        only_place.extend(9u64.to_le_bytes());
        assert_eq!(zip64(&only_place, [1, 2, 0xffff_ffff]), Some((2, 9)));
    }
}
