//! The command line, by hand: a dozen options do not need a library.

use std::ffi::OsString;
use std::path::PathBuf;

use super::input::Given;

/// `--help`.
pub const HELP: &str = "\
hypatia-opt MODEL [-o FILE] [OPTIONS]

Optimizes a TorchScript file (torch.jit.save) and says what it did and why.
Without -o it only explains.

  -o, --output FILE   write the optimized model; FILE may be MODEL
      --explain       print what was done, in a table (implied without -o)
      --json          print the same as JSON instead
      --dot FILE      write the graphs before and after, for GraphViz
      --check         run both on the same random inputs and compare
      --input SPEC    sizes to predict times for and to check with, once for
                      each input in order:
                      f32[8,784] (also f64 f16 bf16 i64 i32 i16 i8 u8 bool),
                      i64[8]:100 (integers below 100), or 3, 0.5, true, none
      --against FILE  check MODEL against FILE; optimize and write nothing
      --device NAME   predict times for cpu, cuda or h100, not for the device
                      that the model is on
      --rows N        the model's input will have N rows
      --library FILE  load a library first whose operators MODEL needs
      --help, --version

Status: 0 done, 1 the check failed (nothing was written), 2 any other error.
";

/// What to do.
#[derive(Debug, PartialEq)]
pub enum Command {
    /// Print the help.
    Help,
    /// Print the version.
    Version,
    /// The real thing.
    Run(Box<Args>),
}

/// Everything but help.
#[derive(Debug, Default, PartialEq)]
pub struct Args {
    /// The file to read.
    pub model: PathBuf,
    /// The file to write.
    pub output: Option<PathBuf>,
    /// Print the table.
    pub explain: bool,
    /// Print JSON.
    pub json: bool,
    /// Draw the graphs there.
    pub dot: Option<PathBuf>,
    /// Run both and compare.
    pub check: bool,
    /// Inputs to check with and to predict for.
    pub inputs: Vec<Given>,
    /// Compare with that file instead.
    pub against: Option<PathBuf>,
    /// Whose times to predict.
    pub device: Option<String>,
    /// Rows of the model's input; 0 for unknown.
    pub rows: i64,
    /// Opened before the model.
    pub libraries: Vec<PathBuf>,
}

/// Reads what follows the program's name.
///
/// # Errors
/// The sentence for the user, without the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
    let mut arguments = arguments.into_iter();
    let mut args = Args::default();
    let mut models: Vec<OsString> = vec![];
    let mut options = true;
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy().into_owned();
        if !options || !text.starts_with('-') || text == "-" {
            models.push(argument);
            continue;
        }
        // Only long options take their value behind a `=`. A path that is not
        // UTF-8 must be an argument of its own.
        let (name, joined) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (text.as_str(), None),
        };
        let mut value = |what: &str| -> Result<OsString, String> {
            let value = joined.map(OsString::from).or_else(|| arguments.next());
            let value = value.filter(|value| !value.is_empty());
            value.ok_or_else(|| wrong(&format!("{what} after {name}"), "nothing"))
        };
        match name {
            "-o" | "--output" => set(&mut args.output, value("a file")?, name)?,
            "--dot" => set(&mut args.dot, value("a file")?, name)?,
            "--against" => set(&mut args.against, value("a file")?, name)?,
            "--library" => args.libraries.push(value("a file")?.into()),
            "--input" => {
                let text = value("an input")?.to_string_lossy().into_owned();
                args.inputs.push(Given::parse(&text).map_err(|expected| wrong(expected, &text))?);
            }
            "--device" => {
                let text = value("a device")?.to_string_lossy().into_owned();
                if !["cpu", "cuda", "h100"].contains(&text.as_str()) {
                    return Err(wrong("cpu, cuda or h100 for --device", &text));
                }
                args.device = Some(text);
            }
            "--rows" => {
                let text = value("a number")?.to_string_lossy().into_owned();
                args.rows = text.parse().ok().filter(|rows| *rows > 0).ok_or_else(|| {
                    wrong("a whole number of at least 1 for --rows", &format!("{text:?}"))
                })?;
            }
            _ if joined.is_some() => {
                let known = FLAGS.contains(&name);
                return Err(wrong(
                    if known { "an option without a value" } else { "an option of this program" },
                    &text,
                ));
            }
            "--explain" => args.explain = true,
            "--json" => args.json = true,
            "--check" => args.check = true,
            "-h" | "--help" => return Ok(Command::Help),
            "-V" | "--version" => return Ok(Command::Version),
            "--" => options = false,
            _ => return Err(wrong("an option of this program", &text)),
        }
    }
    let mut models = models.into_iter();
    args.model = models.next().ok_or_else(|| wrong("a TorchScript file", "none"))?.into();
    if let Some(second) = models.next() {
        return Err(wrong("one TorchScript file", &format!("{} too", second.to_string_lossy())));
    }
    if args.against.is_some() {
        if args.output.is_some() || args.json || args.explain || args.dot.is_some() {
            return Err(wrong("--against alone", "an option that needs an optimized model"));
        }
        args.check = true;
    }
    // JSON says the same.
    args.explain |= args.output.is_none() && args.against.is_none();
    args.explain &= !args.json;
    Ok(Command::Run(Box::new(args)))
}

const FLAGS: [&str; 7] = ["--explain", "--json", "--check", "--help", "--version", "-h", "-V"];

fn set(place: &mut Option<PathBuf>, value: OsString, name: &str) -> Result<(), String> {
    if place.is_some() {
        return Err(wrong(&format!("{name} once"), "it twice"));
    }
    *place = Some(value.into());
    Ok(())
}

fn wrong(expected: &str, got: &str) -> String {
    format!("expected {expected}, got {got}; see hypatia-opt --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn run(line: &str) -> Args {
        match parsed(line) {
            Ok(Command::Run(args)) => *args,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn options_may_stand_anywhere() {
        for line in ["m.pt -o o.pt --check --rows 8", "--rows=8 --check --output=o.pt m.pt"] {
            let args = run(line);
            assert_eq!(args.model, PathBuf::from("m.pt"), "{line}");
            assert_eq!(args.output, Some(PathBuf::from("o.pt")), "{line}");
            assert_eq!((args.check, args.rows), (true, 8), "{line}");
            assert!(!args.explain && !args.json, "{line}");
        }
    }

    #[test]
    fn explain_is_implied_without_output() {
        assert!(run("m.pt").explain);
        assert!(run("m.pt --check").explain);
        assert!(run("m.pt --dot g.dot").explain);
        assert!(!run("m.pt -o o.pt").explain);
        assert!(run("m.pt -o o.pt --explain").explain);
        assert!(!run("m.pt --json").explain);
        assert!(!run("m.pt --json --explain").explain);
    }

    #[test]
    fn several_inputs_and_libraries_keep_their_order() {
        let args = run("m.pt --check --input f32[8,784] --input 3 --library a.so --library b.so");
        assert_eq!(args.inputs.len(), 2);
        assert_eq!(args.inputs[1], Given::Int(3));
        assert_eq!(args.libraries, [PathBuf::from("a.so"), PathBuf::from("b.so")]);
    }

    #[test]
    fn against_is_a_check() {
        let args = run("m.pt --against n.pt");
        assert!(args.check && !args.explain);
    }

    #[test]
    fn a_file_may_look_like_an_option() {
        assert_eq!(run("-- --json").model, PathBuf::from("--json"));
        assert_eq!(run("-").model, PathBuf::from("-"));
    }

    #[test]
    fn help_and_version_win_over_what_follows() {
        assert_eq!(parsed("--help --nonsense"), Ok(Command::Help));
        assert_eq!(parsed("-h"), Ok(Command::Help));
        assert_eq!(parsed("m.pt --version"), Ok(Command::Version));
    }

    #[test]
    fn every_mistake_has_its_sentence() {
        for (line, sentence) in [
            ("", "expected a TorchScript file, got none"),
            ("a.pt b.pt", "expected one TorchScript file, got b.pt too"),
            ("m.pt -o", "expected a file after -o, got nothing"),
            ("m.pt --output=", "expected a file after --output, got nothing"),
            ("m.pt -o a -o b", "expected -o once, got it twice"),
            ("m.pt --frobnicate", "expected an option of this program, got --frobnicate"),
            ("m.pt --frobnicate=1", "expected an option of this program, got --frobnicate=1"),
            ("m.pt --json=1", "expected an option without a value, got --json=1"),
            ("m.pt -x", "expected an option of this program, got -x"),
            ("m.pt --device tpu", "expected cpu, cuda or h100 for --device, got tpu"),
            ("m.pt --rows 0", "expected a whole number of at least 1 for --rows, got \"0\""),
            ("m.pt --rows 1.5", "expected a whole number of at least 1 for --rows, got \"1.5\""),
            (
                "m.pt --against n.pt --json",
                "expected --against alone, got an option that needs an optimized model",
            ),
        ] {
            let got = parsed(line).unwrap_err();
            assert_eq!(got, format!("{sentence}; see hypatia-opt --help"), "{line}");
        }
        assert!(parsed("m.pt --check --input f99[8]").unwrap_err().contains("got f99[8]"));
    }

    #[test]
    fn the_help_names_every_option() {
        for name in ["-o", "--output", "--dot", "--against", "--library", "--input", "--device"]
            .iter()
            .chain(FLAGS.iter().filter(|flag| flag.len() > 2))
        {
            assert!(HELP.contains(name), "{name}");
        }
    }
}
