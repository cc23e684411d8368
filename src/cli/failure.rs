//! LibTorch's messages, which run over many lines, as one sentence.

/// What failed to load, as a sentence without the program's name.
#[must_use]
pub fn loading(path: &str, libtorch: &str, message: &str) -> String {
    const HINT: &str = "load the library that registers it with --library FILE";
    if let Some(name) = between(message, "Unknown builtin op: ", &['\n', ' ']) {
        let name = name.trim_end_matches('.');
        return format!("expected known operators in {path}, got {name}; {HINT}");
    }
    for class in ["__torch__.torch.classes.", "torch.classes."] {
        if let Some(name) = between(message, class, &['\n', ' ', '\'', '"', ',', '(', ')']) {
            let name = name.trim_end_matches(['.', ':']);
            return format!("expected known classes in {path}, got torch.classes.{name}; {HINT}");
        }
    }
    let no_cuda = ["PyTorch CUDA", "ATen_cuda", "NVIDIA driver", "'CUDA' backend", "CUDA GPUs"];
    if no_cuda.iter().any(|text| message.contains(text)) {
        return format!(
            "expected CUDA for the tensors of {path}, got a machine or LibTorch without it; \
             move the model to the CPU before it is saved, or run this where CUDA is"
        );
    }
    let first = first_line(message);
    format!("expected a TorchScript archive that LibTorch {libtorch} loads in {path}, got {first}")
}

/// The first line of a message, quoted and not too long.
#[must_use]
pub fn first_line(message: &str) -> String {
    const MOST: usize = 300;
    let mut lines = message.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.next().unwrap_or("no message");
    // With a model's own code the error comes last: `RuntimeError: …`.
    let line = if line.starts_with("The following operation failed in the TorchScript") {
        lines.rfind(|line| line.contains("Error: ")).unwrap_or(line)
    } else {
        line
    };
    let mut text: String = line.chars().filter(|c| !c.is_control()).take(MOST).collect();
    if text.len() < line.len() && text.chars().count() == MOST {
        text.push('…');
    }
    format!("\"{text}\"")
}

fn between<'a>(text: &'a str, start: &str, ends: &[char]) -> Option<&'a str> {
    let rest = &text[text.find(start)? + start.len()..];
    let name = &rest[..rest.find(ends).unwrap_or(rest.len())];
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operator_and_a_class_are_named() {
        let text =
            "\nUnknown builtin op: other::scale.\nCould not find any similar ops.\n:\n  File";
        assert_eq!(
            loading("m.pt", "2.11.0", text),
            "expected known operators in m.pt, got other::scale; load the library that \
             registers it with --library FILE"
        );
        let text = "\nUnknown type name '__torch__.torch.classes.my.Stack':\n   File \"code";
        assert!(loading("m.pt", "2.11.0", text).contains("got torch.classes.my.Stack;"));
    }

    #[test]
    fn no_cuda_is_said() {
        let text = "Found no NVIDIA driver on your system. Please check";
        assert!(loading("m.pt", "2.11.0", text).starts_with("expected CUDA for the tensors of"));
    }

    #[test]
    fn anything_else_is_quoted_in_one_line() {
        let got = loading("m.pt", "2.11.0", "\n  Expected a value\nbut\u{7} more\nlines");
        assert_eq!(
            got,
            "expected a TorchScript archive that LibTorch 2.11.0 loads in m.pt, got \"Expected a \
             value\""
        );
        assert_eq!(first_line(""), "\"no message\"");
        assert!(first_line(&"é".repeat(1000)).chars().count() < 310);
    }

    #[test]
    fn an_error_in_the_model_s_code_is_the_last_line() {
        let text = "The following operation failed in the TorchScript interpreter.\n\
                    Traceback of TorchScript, serialized code (most recent call last):\n  File\n\
                    RuntimeError: mat1 and mat2 shapes cannot be multiplied (8x3 and 4x5)\n";
        assert!(first_line(text).starts_with("\"RuntimeError: mat1"), "{}", first_line(text));
    }
}
