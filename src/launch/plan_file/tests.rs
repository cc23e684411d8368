//! On real folders: what goes wrong there must cost plans, never the process.

use std::fs;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::process::Command;

use super::*;
use crate::plan::kept::Choice;
use crate::plan::problem::{Dtype, Epilogue, Math, Operand};

/// An empty folder, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hypatia-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn open(&self) -> (PlanFile, Option<Trouble>) {
        PlanFile::open(&self.0, &header())
    }

    /// The file as it will be called.
    fn file(&self) -> PathBuf {
        self.0.join(text::file_name(&header().to_string()))
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap()
    }

    fn names(&self) -> usize {
        fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn header() -> text::Header {
    text::Header {
        device: "NVIDIA H100".to_owned(),
        capability: 90,
        multiprocessors: 132,
        driver: "13000:580.1".to_owned(),
        cublaslt: 130_100,
        workspace_limit: 32 << 20,
        kernels: "none".to_owned(),
        code: 1,
    }
}

fn plan(m: i64, us: f32) -> Kept {
    let operand = |transposed| Operand { transposed, ld: 784, alignment: 256 };
    let gemm = Gemm {
        device: 1,
        dtype: Dtype::Bf16,
        math: Math::Strict,
        split_k: true,
        deterministic: false,
        m,
        n: 128,
        k: 784,
        a: operand(true),
        b: operand(false),
        ldd: m,
        d_alignment: 256,
        bias_alignment: 256,
        epilogue: Epilogue::ReluBias,
    };
    Kept::new(&gemm, Choice::Library { config: [m as u32; 9], workspace: 0 }, Some(us))
}

#[test]
fn the_next_process_finds_what_was_kept() {
    let folder = Folder::new("next");
    let place = folder.0.join("not/there/yet");
    let (first, trouble) = PlanFile::open(&place, &header());
    assert_eq!((first.known(), trouble), (0, None));
    assert!(!place.exists(), "reading makes nothing");
    for kept in [plan(1, 1.0), plan(2, 2.0), plan(1, 3.0)] {
        first.keep(kept).unwrap();
    }
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&place), mode(first.path())), (0o700, 0o600));
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1, "nothing is left beside it");
    let (next, trouble) = PlanFile::open(&place, &header());
    assert_eq!((next.known(), trouble), (2, None));
    for file in [&first, &next] {
        for device in [0, 1, 7] {
            let found = |m| file.find(&Gemm { device, ..plan(m, 0.0).gemm });
            assert_eq!(
                [found(1), found(2), found(3)],
                [Some(plan(1, 3.0)), Some(plan(2, 2.0)), None]
            );
        }
    }
    let other = text::Header { cublaslt: 130_200, ..header() };
    let (other, trouble) = PlanFile::open(&place, &other);
    assert_eq!((other.known(), trouble), (0, None), "another version has another file");
}

#[test]
fn threads_share_a_file() {
    let folder = Folder::new("threads");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let file = folder.open().0;
            scope.spawn(move || {
                (0..100).for_each(|n| file.keep(plan(100 * thread + n, 1.0)).unwrap())
            });
        }
    });
    let (all, trouble) = folder.open();
    assert_eq!((all.known(), trouble, folder.names()), (800, None, 1));
}

/// Not a test: what the processes of the next one run.
#[test]
#[ignore = "run by processes_share_a_file"]
fn a_process_that_keeps_plans() {
    let Ok(place) = std::env::var("HYPATIA_TEST_PLANS") else { return };
    let (folder, first) = place.split_once(':').unwrap();
    let (file, trouble) = PlanFile::open(Path::new(folder), &header());
    assert_eq!(trouble, None);
    for n in 0..200 {
        file.keep(plan(first.parse::<i64>().unwrap() + n, 1.0)).unwrap();
    }
}

#[test]
fn processes_share_a_file() {
    let folder = Folder::new("processes");
    let name = "launch::plan_file::tests::a_process_that_keeps_plans";
    let start = |first: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", name])
            .env("HYPATIA_TEST_PLANS", format!("{}:{first}", folder.0.display()))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..6).map(|child| start(1000 * child)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let (all, trouble) = folder.open();
    assert_eq!((all.known(), trouble, folder.names()), (1200, None, 1));
    // Perhaps with empty lines: who reads while another writes may see half a line.
    assert_eq!(folder.text().matches("hypatia-plans").count(), 1, "one header");
}

#[test]
fn a_damaged_file_gives_the_rest_once_and_is_mended() {
    let folder = Folder::new("damaged");
    let (file, _) = folder.open();
    for m in 0..4 {
        file.keep(plan(m, 1.0)).unwrap();
    }
    let text = folder.text().replacen("m=1 ", "m=9 ", 1);
    let half = format!("{}", plan(5, 1.0));
    fs::write(folder.file(), format!("{text}{}", &half[..half.len() / 2])).unwrap();
    let (read, trouble) = folder.open();
    let trouble = trouble.unwrap();
    let (shown, damage) = (folder.file(), trouble.damage);
    assert!(damage);
    assert_eq!(
        trouble.sentence,
        format!(
            "expected 4 whole lines of timed plans in {}, got 1 that are damaged; these are ignored",
            shown.display()
        )
    );
    assert_eq!(read.known(), 3);
    read.keep(plan(6, 1.0)).unwrap();
    let (again, trouble) = folder.open();
    assert_eq!((again.known(), trouble), (4, None));
    assert_eq!(folder.text().lines().count(), 5);
}

#[test]
fn a_line_without_its_end_does_not_spoil_the_next() {
    let folder = Folder::new("end");
    folder.open().0.keep(plan(1, 1.0)).unwrap();
    let text = folder.text();
    let begin = text.lines().next().unwrap().len();
    for (cut, known) in [(0, 0), (begin, 0), (begin + 9, 0), (text.len() - 1, 1)] {
        fs::write(folder.file(), &text[..cut]).unwrap();
        let (file, trouble) = folder.open();
        // Another process may be writing it: no damage, and not to be replaced.
        assert_eq!((file.known(), trouble), (known, None), "{cut}");
        assert!(cut == 0 || folder.text() == text[..cut], "{cut}");
        file.keep(plan(2, 2.0)).unwrap();
        file.keep(plan(3, 3.0)).unwrap();
        assert!(!folder.text().contains("\n\n"), "only where it is needed");
        let (file, _) = folder.open();
        assert_eq!(file.known(), known + 2, "{cut}");
    }
}

#[test]
fn a_line_that_is_just_being_written_is_not_lost() {
    let folder = Folder::new("being-written");
    folder.open().0.keep(plan(1, 1.0)).unwrap();
    let whole = format!("{}{}\n", folder.text(), plan(2, 2.0));
    let mut other = OpenOptions::new().append(true).open(folder.file()).unwrap();
    let (half, rest) = whole[folder.text().len()..].split_at(100);
    other.write_all(half.as_bytes()).unwrap();
    let (file, trouble) = folder.open();
    assert_eq!((file.known(), trouble), (1, None));
    other.write_all(rest.as_bytes()).unwrap();
    file.keep(plan(3, 3.0)).unwrap();
    let (all, trouble) = folder.open();
    assert_eq!((all.known(), trouble), (3, None));
}

#[test]
fn who_comes_second_appends_to_what_the_first_made() {
    let folder = Folder::new("second");
    let (first, second) = (folder.open().0, folder.open().0);
    first.keep(plan(1, 1.0)).unwrap();
    second.create(&text::render(&second.header, &[plan(2, 2.0)]), false).unwrap();
    let (all, trouble) = folder.open();
    assert_eq!((all.known(), trouble, folder.names()), (2, None, 1));
    assert_eq!(folder.text().lines().count(), 3, "one header");
}

#[test]
fn what_is_not_ours_is_ignored_and_left_as_it_is() {
    let folder = Folder::new("foreign");
    let ours = text::render(&header().to_string(), &[plan(1, 1.0)]);
    let foreign = ours.replacen("cublaslt=130100", "cublaslt=130200", 1);
    let garbage = [0u8, 255, b'\n'].repeat(1000);
    for bytes in [foreign.as_bytes(), &garbage, b"\n", &ours.as_bytes()[1..]] {
        fs::write(folder.file(), bytes).unwrap();
        let (file, trouble) = folder.open();
        let trouble = trouble.unwrap();
        assert!(trouble.damage && file.known() == 0);
        let start =
            format!("expected {} to begin with \"hypatia-plans 1 ", folder.file().display());
        assert!(trouble.sentence.starts_with(&start), "{}", trouble.sentence);
        assert!(trouble.sentence.contains("\", got \""), "{}", trouble.sentence);
        assert!(trouble.sentence.ends_with("; the file is ignored"), "{}", trouble.sentence);
        assert!(!trouble.sentence.contains('\n') && trouble.sentence.len() < 4000);
        file.keep(plan(2, 1.0)).unwrap();
        assert_eq!(fs::read(folder.file()).unwrap(), bytes);
        assert_eq!(file.find(&plan(2, 0.0).gemm), Some(plan(2, 1.0)), "this process knows it");
    }
}

#[test]
fn of_a_huge_file_little_is_read() {
    let folder = Folder::new("huge");
    let mut text = text::render(&header().to_string(), &[plan(1, 1.0)]).into_bytes();
    text.push(b'x');
    fs::write(folder.file(), text).unwrap();
    // Sparse: it takes no space.
    File::options().write(true).open(folder.file()).unwrap().set_len(1 << 40).unwrap();
    let (file, trouble) = folder.open();
    let trouble = trouble.unwrap();
    assert!(trouble.damage && file.known() == 0);
    assert!(trouble.sentence.contains("expected at most 4194304 bytes"), "{}", trouble.sentence);
    file.keep(plan(2, 1.0)).unwrap();
    assert_eq!(folder.file().metadata().unwrap().len(), 1 << 40);
}

#[test]
fn what_is_no_file_is_not_waited_for() {
    let folder = Folder::new("no-file");
    let path = folder.file();
    let check = |what: &str, got: &str| {
        let (file, trouble) = folder.open();
        let sentence = trouble.as_ref().map(|t| t.sentence.clone()).unwrap_or_default();
        assert!(sentence.contains("expected to read timed plans in "), "{what}: {sentence}");
        assert!(sentence.contains(got), "{what}: {sentence}");
        assert!(trouble.unwrap().damage && file.known() == 0);
        file.keep(plan(1, 1.0)).unwrap();
    };
    fs::create_dir(&path).unwrap();
    check("a directory", "got: something that is no file; the file is ignored");
    fs::remove_dir(&path).unwrap();
    symlink(&path, &path).unwrap();
    check("a loop", "symbolic link");
    fs::remove_file(&path).unwrap();
    fs::write(folder.0.join("victim"), "mine").unwrap();
    symlink(folder.0.join("victim"), &path).unwrap();
    check("a link", "symbolic link");
    assert_eq!(fs::read_to_string(folder.0.join("victim")).unwrap(), "mine");
    fs::remove_file(&path).unwrap();
    let pipe = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: a NUL-terminated path.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    check("a pipe", "got: something that is no file; the file is ignored");
    fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    check("a device", "symbolic link");
}

#[test]
fn where_nothing_can_be_written_it_says_so_once() {
    let folder = Folder::new("unwritable");
    fs::write(folder.0.join("file"), "").unwrap();
    let places = [folder.0.join("file"), folder.0.join("file/under"), "/proc/hypatia".into()];
    for place in places {
        let (file, trouble) = PlanFile::open(&place, &header());
        assert_eq!(trouble, None, "{place:?}");
        let trouble = file.keep(plan(1, 1.0)).unwrap_err();
        assert!(!trouble.damage);
        let start = format!("expected to keep timed plans in {}", place.display());
        assert!(trouble.sentence.starts_with(&start), "{}", trouble.sentence);
        assert!(trouble.sentence.ends_with("; no more are kept"), "{}", trouble.sentence);
        assert_eq!(file.keep(plan(2, 1.0)), Ok(()), "not tried again");
        assert_eq!(file.known(), 2);
    }
}

#[test]
fn files_and_folders_without_permission() {
    let folder = Folder::new("permission");
    let (file, _) = folder.open();
    file.keep(plan(1, 1.0)).unwrap();
    let allow =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    allow(&folder.file(), 0o000);
    if File::open(folder.file()).is_ok() {
        return; // The superuser may do everything.
    }
    let trouble = folder.open().1.unwrap();
    assert!(
        !trouble.damage && trouble.sentence.contains("ermission denied"),
        "{}",
        trouble.sentence
    );
    allow(&folder.file(), 0o400);
    let (file, trouble) = folder.open();
    assert_eq!((file.known(), trouble), (1, None));
    assert!(file.keep(plan(2, 1.0)).unwrap_err().sentence.contains("ermission denied"));
    fs::remove_file(folder.file()).unwrap();
    allow(&folder.0, 0o500);
    let (file, trouble) = folder.open();
    assert_eq!(trouble, None);
    assert!(file.keep(plan(2, 1.0)).unwrap_err().sentence.contains("ermission denied"));
    allow(&folder.0, 0o700);
}

#[test]
fn a_file_of_another_user_is_ignored() {
    let folder = Folder::new("owner");
    folder.open().0.keep(plan(1, 1.0)).unwrap();
    if std::os::unix::fs::chown(folder.file(), Some(12345), None).is_err() {
        return; // Only the superuser can try this.
    }
    let (file, trouble) = folder.open();
    let trouble = trouble.unwrap();
    assert!(trouble.damage && file.known() == 0);
    assert!(trouble.sentence.contains("a file that belongs to user 12345"), "{}", trouble.sentence);
    file.keep(plan(2, 1.0)).unwrap();
    assert!(!folder.text().contains("m=2 "));
}

#[test]
fn a_file_that_goes_is_made_again_and_one_that_turns_bad_is_not_written() {
    let folder = Folder::new("goes");
    let (file, _) = folder.open();
    file.keep(plan(1, 1.0)).unwrap();
    fs::remove_file(folder.file()).unwrap();
    file.keep(plan(2, 1.0)).unwrap();
    let (read, trouble) = folder.open();
    assert_eq!((read.known(), trouble), (1, None));
    fs::remove_file(folder.file()).unwrap();
    fs::create_dir(folder.file()).unwrap();
    assert!(file.keep(plan(3, 1.0)).unwrap_err().sentence.contains("directory"));
}

#[test]
fn a_full_file_grows_no_more_unless_some_of_it_counts_no_more() {
    let folder = Folder::new("full");
    let header = header().to_string();
    let many: Vec<_> = (0..MOST as i64 - 1).map(|m| plan(m, 1.0)).collect();
    fs::write(folder.file(), text::render(&header, &many)).unwrap();
    let (file, _) = folder.open();
    for m in [-1, -2, -3] {
        file.keep(plan(m, 1.0)).unwrap();
    }
    assert_eq!(folder.text().lines().count(), 1 + MOST);
    let (file, trouble) = folder.open();
    assert_eq!((file.known(), trouble), (MOST, None));
    let twice: Vec<_> = (0..MOST as i64).map(|m| plan(m % 9, 1.0)).collect();
    fs::write(folder.file(), text::render(&header, &twice)).unwrap();
    let (file, trouble) = folder.open();
    assert_eq!((file.known(), trouble), (9, None));
    file.keep(plan(-1, 1.0)).unwrap();
    assert_eq!(folder.text().lines().count(), 1 + 10);
}
