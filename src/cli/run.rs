//! The steps of `hypatia-opt`, one after another.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use cxx::UniquePtr;

use super::args::{self, Args, Command};
use super::check::{judge, Leaf, Verdict};
use super::container::{self, damaged};
use super::crc32::Crc32;
use super::failure;
use super::input::{tensor_text, Given};
use super::output::Pending;
use super::progress::Progress;
use super::table;
use crate::bridge::archive::ffi::{self, Archive, Input, InputKind};
use crate::bridge::crash;
use crate::bridge::graph::ffi as graph;
use crate::bridge::session::{new_session, Session};
use crate::error::{guarded, Error};

const LIBTORCH: &str = env!("HYPATIA_LIBTORCH_VERSION");

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    // A panic is told like any other error.
    std::panic::set_hook(Box::new(|_| {}));
    crash::watch();
    ffi::silence();
    let result = guarded("hypatia-opt", || Ok(command(std::env::args_os().skip(1))));
    let result = result.unwrap_or_else(|error| match error {
        Error::Internal { message, .. } => {
            Err(format!("expected no internal failure, got a panic: {message}"))
        }
        other => Err(other.to_string()),
    });
    let (sentence, status) = match result {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(wrong)) => (wrong, 1),
        Err(sentence) => (sentence, 2),
    };
    // Whoever does not read stderr gets the status all the same.
    let _ = writeln!(std::io::stderr(), "hypatia-opt: {}", sentence.replace('\n', " "));
    ExitCode::from(status)
}

/// What the check found wrong, if anything.
fn command(arguments: impl Iterator<Item = OsString>) -> Result<Option<String>, String> {
    match args::parse(arguments)? {
        Command::Help => print(args::HELP),
        Command::Version => {
            print(&format!("hypatia-opt {} (LibTorch {LIBTORCH})\n", env!("CARGO_PKG_VERSION")))
        }
        Command::Run(args) => {
            let progress = Progress::new(Duration::from_secs(1), |line| {
                let _ = writeln!(std::io::stderr(), "hypatia-opt: {line}");
            });
            let wrong = run(&args, &|stage| {
                crash::stage(stage);
                progress.stage(stage);
            })?;
            progress.done();
            return Ok(wrong);
        }
    }
    Ok(None)
}

/// A reader who has seen enough (`| head`) is no error.
fn print(text: &str) {
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

fn run(args: &Args, stage: &dyn Fn(&'static str)) -> Result<Option<String>, String> {
    stage("loading");
    for library in &args.libraries {
        let path = utf8(library)?;
        ffi::open_library(path).map_err(|error| {
            let got = failure::first_line(error.what());
            format!("expected a library that loads for --library, got {got}")
        })?;
    }
    let extra = verified(&args.model)?;
    let output = args.output.as_deref().map(Pending::new).transpose()?;
    let dot = args.dot.as_deref().map(Pending::new).transpose()?;
    different(args, output.as_ref(), dot.as_ref())?;
    crash::temporary([&output, &dot].map(|file| file.as_ref().map(Pending::temporary)));
    let original = load(&args.model, &extra)?;
    let inputs = if args.check { inputs(args, &original)? } else { vec![] };

    if let Some(against) = &args.against {
        let extra = verified(against)?;
        let candidate = load(against, &extra)?;
        stage("checking");
        let verdict = check(&original, &candidate, &inputs)?;
        print(&verdict.text(&describe(&inputs)));
        return Ok(verdict.wrong);
    }

    stage("optimizing");
    let example = example(args, &original)?;
    let options = graph::archive_options(&original);
    let mut options = options.map_err(|error| unexpected("optimize", &error))?;
    options.device = args.device.clone().unwrap_or(options.device);
    options.rows = args.rows;
    options.example = !example.is_empty();
    let mut session = new_session(&options);
    let optimized = graph::optimize_archive(&original, &example, &mut session)
        .map_err(|error| unexpected("optimize", &error))?;
    if let Some(output) = &output {
        stage("saving");
        ffi::save_archive(&optimized, utf8(output.temporary())?).map_err(|error| {
            let got = failure::first_line(error.what());
            format!("expected to write {}, got {got}", output.target().display())
        })?;
    }
    let mut verdict = None;
    if args.check {
        stage("checking");
        // What was saved is what counts. The two models of this process share
        // their tensors, and running one may change the other: the original
        // runs from a fresh copy.
        let fresh = load(&args.model, &extra)?;
        let saved = output.as_ref().map(|output| load(output.temporary(), &extra)).transpose()?;
        verdict = Some(check(&fresh, saved.as_ref().unwrap_or(&optimized), &inputs)?);
    }
    let wrong = verdict.as_ref().and_then(|verdict| verdict.wrong.clone());
    if wrong.is_none() {
        if let Some(dot) = dot {
            write(dot, &session.dot())?;
        }
        if let Some(output) = output {
            output.commit()?;
        }
        crash::temporary([None, None]);
    }
    report(args, &session, verdict.as_ref(), &inputs);
    Ok(wrong)
}

/// Is a whole TorchScript archive; returns the files that were packed beside
/// the model.
fn verified(model: &Path) -> Result<Vec<String>, String> {
    let shown = model.display();
    let missing = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            format!("expected a TorchScript file in {shown}, got no such file")
        }
        _ => format!("expected a TorchScript file in {shown}, got \"{error}\""),
    };
    if model.is_dir() {
        return Err(format!("expected a TorchScript file in {shown}, got a folder"));
    }
    let mut file = File::open(model).map_err(missing)?;
    let wrong = |got: String| format!("expected a TorchScript archive in {shown}, got {got}");
    let members = container::members(&mut file).map_err(wrong)?;
    let path = utf8(model)?;
    for member in members.iter().filter(|member| member.compressed) {
        // LibTorch decompresses; damage may already stop it there.
        let bytes = ffi::archive_record(path, &member.name);
        if !bytes.is_ok_and(|bytes| Crc32::of(&bytes) == member.crc) {
            return Err(wrong(damaged(&member.name)));
        }
    }
    let extra = members.iter().filter_map(|member| member.name.strip_prefix("extra/"));
    Ok(extra.map(str::to_owned).collect())
}

fn load(model: &Path, extra: &Vec<String>) -> Result<UniquePtr<Archive>, String> {
    let path = utf8(model)?;
    ffi::load_archive(path, extra).map_err(|error| failure::loading(path, LIBTORCH, error.what()))
}

fn utf8(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("expected a path in UTF-8, got {}", path.display()))
}

fn unexpected(step: &str, error: &cxx::Exception) -> String {
    format!("expected to {step} the model, got {}", failure::first_line(error.what()))
}

/// One file would overwrite the other.
fn different(args: &Args, output: Option<&Pending>, dot: Option<&Pending>) -> Result<(), String> {
    let Some(dot) = dot else { return Ok(()) };
    let model = args.model.canonicalize().ok();
    if Some(dot.target()) == output.map(Pending::target) || Some(dot.target()) == model.as_deref() {
        let shown = dot.target().display();
        return Err(format!("expected a file of its own for --dot, got {shown}, a model's"));
    }
    Ok(())
}

/// What the user gave or a trace recorded: sizes for the predictions. Rows that
/// the user names are about another call than the recorded one.
fn example(args: &Args, model: &Archive) -> Result<Vec<Input>, String> {
    if args.inputs.is_empty() && args.rows > 0 {
        return Ok(vec![]);
    }
    let inputs = known_inputs(args, model);
    let mut inputs = if args.inputs.is_empty() { inputs.unwrap_or_default() } else { inputs? };
    for input in inputs.iter_mut().filter(|input| !input.certain) {
        input.kind = InputKind::Unknown;
    }
    Ok(if inputs.iter().any(|input| input.certain) { inputs } else { vec![] })
}

/// What is known of the arguments of forward.
fn known_inputs(args: &Args, model: &Archive) -> Result<Vec<Input>, String> {
    let path = utf8(&args.model)?;
    let mut inputs = ffi::archive_inputs(model, path, args.rows).map_err(|error| {
        format!("expected a model to run, got {}", failure::first_line(error.what()))
    })?;
    if args.inputs.len() > inputs.len() {
        return Err(format!(
            "expected at most {} --input, as {path} takes, got {}",
            inputs.len(),
            args.inputs.len()
        ));
    }
    for (input, given) in inputs.iter_mut().zip(&args.inputs) {
        take(given, input);
    }
    Ok(inputs)
}

/// The arguments of the check, all of them.
fn inputs(args: &Args, model: &Archive) -> Result<Vec<Input>, String> {
    let inputs = known_inputs(args, model)?;
    for input in &inputs {
        if input.kind == InputKind::Unknown {
            return Err(format!(
                "expected a known input {} ({}), got no recorded shape and no layer to infer it \
                 from; give every input in its order, such as --input f32[8,784]",
                input.name, input.type_name
            ));
        }
    }
    Ok(inputs)
}

fn take(given: &Given, input: &mut Input) {
    input.source = "given".into();
    input.certain = true;
    match given {
        Given::Tensor { dtype, shape, limit } => {
            input.kind = InputKind::Tensor;
            input.dtype = *dtype;
            input.shape.clone_from(shape);
            // Otherwise what an embedding said stands.
            if *limit > 0 {
                input.limit = *limit;
            }
        }
        Given::Int(value) => (input.kind, input.whole) = (InputKind::Int, *value),
        Given::Float(value) => (input.kind, input.real) = (InputKind::Float, *value),
        Given::Bool(value) => (input.kind, input.whole) = (InputKind::Bool, (*value).into()),
        Given::None => input.kind = InputKind::None,
    }
}

fn describe(inputs: &[Input]) -> Vec<String> {
    let lines = inputs.iter().map(|input| {
        let value = match input.kind {
            InputKind::Tensor => tensor_text(input.dtype, &input.shape),
            InputKind::Int => input.whole.to_string(),
            InputKind::Float => input.real.to_string(),
            InputKind::Bool => (input.whole != 0).to_string(),
            InputKind::None => "none".to_owned(),
            _ => return format!("{}: its default", input.name),
        };
        format!("{}: {value} ({})", input.name, input.source)
    });
    lines.collect()
}

fn check(original: &Archive, candidate: &Archive, inputs: &[Input]) -> Result<Verdict, String> {
    let list = inputs.to_vec();
    let expected = ffi::run_archive(original, &list).map_err(|error| {
        format!(
            "expected a model that runs on {}, got {}; give every input in its order, such as \
             --input f32[8,784]",
            describe(inputs).join(", "),
            failure::first_line(error.what())
        )
    })?;
    let got = match ffi::run_archive(candidate, &list) {
        Ok(got) => got,
        Err(error) => {
            let got = failure::first_line(error.what());
            let wrong = format!("expected an output as the original's, got {got}");
            return Ok(Verdict { wrong: Some(wrong), ..Verdict::default() });
        }
    };
    let leaves = ffi::compare_outputs(&expected, &got);
    let leaves = leaves.map_err(|error| {
        let got = failure::first_line(error.what());
        format!("expected outputs that can be compared, got {got}")
    })?;
    let leaves: Vec<Leaf> = leaves.into_iter().map(Into::into).collect();
    Ok(judge(&leaves))
}

impl From<ffi::Comparison> for Leaf {
    fn from(c: ffi::Comparison) -> Self {
        Self {
            path: c.path,
            what: c.what,
            elements: c.elements,
            mismatch: c.mismatch,
            max_abs: (c.max_abs, c.abs_at),
            max_rel: (c.max_rel, c.rel_at),
            worst: (c.worst, c.worst_at),
        }
    }
}

fn write(pending: Pending, text: &str) -> Result<(), String> {
    std::fs::write(pending.temporary(), text).map_err(|error| {
        format!("expected to write {}, got \"{error}\"", pending.target().display())
    })?;
    pending.commit()
}

fn report(args: &Args, session: &Session, verdict: Option<&Verdict>, inputs: &[Input]) {
    if args.json {
        let mut json = session.report();
        if let Some(verdict) = verdict {
            json.truncate(json.len() - 1); // The closing brace.
            json += &format!(", \"check\": {}}}", verdict.json());
        }
        return print(&(json + "\n"));
    }
    let mut text = String::new();
    if args.explain {
        text += &table::render(&args.model.display().to_string(), session.details());
    }
    if let Some(verdict) = verdict {
        if args.explain {
            text.push('\n');
        }
        text += &verdict.text(&describe(inputs));
    }
    print(&text);
}
