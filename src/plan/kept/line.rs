//! One plan as one line: `name=value` in a fixed order, then a checksum.

use std::fmt;
use std::str::FromStr;

use super::super::problem::{Dtype, Epilogue, Gemm, Math, Operand};
use super::super::tensor_gemm::Shape;
use super::{hash, Choice, Config, Kept, SEED};

/// Names in the file. They are not `Debug`'s, which may change with the code.
const DTYPES: [(Dtype, &str); 3] =
    [(Dtype::F32, "f32"), (Dtype::F16, "f16"), (Dtype::Bf16, "bf16")];
const MATHS: [(Math, &str); 3] =
    [(Math::Strict, "strict"), (Math::Tf32, "tf32"), (Math::Fp16Accumulate, "fp16_accumulate")];
const EPILOGUES: [(Epilogue, &str); 4] = [
    (Epilogue::None, "none"),
    (Epilogue::Bias, "bias"),
    (Epilogue::Relu, "relu"),
    (Epilogue::ReluBias, "relu_bias"),
];

fn name_of<T: PartialEq>(names: &[(T, &'static str)], value: &T) -> &'static str {
    names.iter().find(|(known, _)| known == value).map_or("", |(_, name)| name)
}

fn value_of<T: Copy>(names: &[(T, &'static str)], name: &str) -> Option<T> {
    names.iter().find(|(_, known)| *known == name).map(|(value, _)| *value)
}

impl fmt::Display for Kept {
    /// The line without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = body(self);
        write!(f, "{body} sum={:016x}", hash(body.as_bytes(), SEED))
    }
}

fn body(kept: &Kept) -> String {
    // Without `..`: a new field must be stated here, or two products share a line.
    let Gemm {
        device: _,
        dtype,
        math,
        split_k,
        deterministic,
        m,
        n,
        k,
        a,
        b,
        ldd,
        d_alignment,
        bias_alignment,
        epilogue,
    } = kept.gemm;
    let operand = |o: Operand| {
        let Operand { transposed, ld, alignment } = o;
        format!("{},{ld},{alignment}", u8::from(transposed))
    };
    let algorithm = match kept.choice {
        Choice::Library { config, workspace } => {
            let config: Vec<_> = config.iter().map(|value| format!("{value:08x}")).collect();
            format!("cublaslt,{},{workspace}", config.join("."))
        }
        Choice::Own { shape: Shape { groups, cols }, overlaps } => {
            format!("tensor_gemm,{groups}x{cols},{}", u8::from(overlaps))
        }
    };
    format!(
        "dtype={} math={} split_k={} deterministic={} m={m} n={n} k={k} a={} b={} \
         d={ldd},{d_alignment} bias={bias_alignment} epilogue={} algorithm={algorithm} us={}",
        name_of(&DTYPES, &dtype),
        name_of(&MATHS, &math),
        u8::from(split_k),
        u8::from(deterministic),
        operand(a),
        operand(b),
        name_of(&EPILOGUES, &epilogue),
        kept.us.map_or_else(|| "-".to_owned(), |us| us.to_string()),
    )
}

/// The plan of a line; `None` for one that is not, to the byte, what we write.
#[must_use]
pub fn parse(line: &[u8]) -> Option<Kept> {
    let line = std::str::from_utf8(line).ok()?;
    let (text, _) = line.rsplit_once(" sum=")?;
    let mut words = text.split(' ');
    let mut value = |name| words.next()?.strip_prefix(name)?.strip_prefix('=');
    let dtype = value_of(&DTYPES, value("dtype")?)?;
    let math = value_of(&MATHS, value("math")?)?;
    let split_k = flag(value("split_k")?)?;
    let deterministic = flag(value("deterministic")?)?;
    let (m, n, k) = (number(value("m")?)?, number(value("n")?)?, number(value("k")?)?);
    let (a, b) = (operand(value("a")?)?, operand(value("b")?)?);
    let (ldd, d_alignment) = value("d")?.split_once(',')?;
    let gemm = Gemm {
        device: 0,
        dtype,
        math,
        split_k,
        deterministic,
        m,
        n,
        k,
        a,
        b,
        ldd: number(ldd)?,
        d_alignment: number(d_alignment)?,
        bias_alignment: number(value("bias")?)?,
        epilogue: value_of(&EPILOGUES, value("epilogue")?)?,
    };
    let choice = choice(value("algorithm")?)?;
    let us = match value("us")? {
        "-" => None,
        us => Some(number(us)?),
    };
    let kept = Kept::new(&gemm, choice, us);
    // Another checksum, leading zeros, signs, more words: damage.
    (kept.to_string() == line).then_some(kept)
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn flag(text: &str) -> Option<bool> {
    match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    }
}

fn operand(text: &str) -> Option<Operand> {
    let mut parts = text.split(',');
    Some(Operand {
        transposed: flag(parts.next()?)?,
        ld: number(parts.next()?)?,
        alignment: number(parts.next()?)?,
    })
}

fn choice(text: &str) -> Option<Choice> {
    let mut parts = text.split(',');
    match parts.next()? {
        "cublaslt" => {
            let mut config = Config::default();
            let mut given = parts.next()?.split('.');
            for value in &mut config {
                *value = u32::from_str_radix(given.next()?, 16).ok()?;
            }
            Some(Choice::Library { config, workspace: number(parts.next()?)? })
        }
        "tensor_gemm" => {
            let (groups, cols) = parts.next()?.split_once('x')?;
            let shape = Shape { groups: number(groups)?, cols: number(cols)? };
            Some(Choice::Own { shape, overlaps: flag(parts.next()?)? })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{all, with_sum};
    use super::*;

    #[test]
    fn every_plan_comes_back_from_its_line() {
        let all = all();
        assert!(all.len() > 1000);
        for kept in all {
            let line = kept.to_string();
            assert_eq!(parse(line.as_bytes()), Some(kept), "{line}");
            assert!(line.len() < 600 && line.is_ascii() && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn products_that_differ_in_one_field_differ_in_their_lines() {
        let all = all();
        let mut lines: Vec<_> = all.iter().map(ToString::to_string).collect();
        lines.sort();
        lines.dedup();
        assert_eq!(lines.len(), all.len());
    }

    #[test]
    fn no_line_with_a_changed_or_missing_byte_is_taken() {
        for kept in all().into_iter().step_by(97) {
            let line = kept.to_string().into_bytes();
            for at in 0..line.len() {
                assert_eq!(parse(&line[..at]), None, "cut at {at}");
                for bit in 0..8 {
                    let mut changed = line.clone();
                    changed[at] ^= 1 << bit;
                    let text = String::from_utf8_lossy(&changed).into_owned();
                    assert_eq!(parse(&changed), None, "bit {bit} of {at}: {text}");
                }
                let mut longer = line.clone();
                longer.insert(at, line[at]);
                assert_eq!(parse(&longer), None, "byte {at} twice");
            }
        }
    }

    #[test]
    fn what_we_would_not_write_is_refused_even_with_a_right_checksum() {
        let good = all()[0];
        let body = body(&good);
        assert_eq!(parse(with_sum(&body).as_bytes()), Some(good));
        for (old, new) in [
            ("m=", "m=+"),
            ("m=", "m=0"),
            ("m=", "mm="),
            (" m=", "  m="),
            ("us=", "us=-"),
            ("dtype=f32", "dtype=f64"),
            ("split_k=1", "split_k=2"),
            ("algorithm=cublaslt", "algorithm=cublas"),
            (",256 bias", ",256,1 bias"),
            ("00.", "00.00."),
        ] {
            let changed = body.replacen(old, new, 1);
            assert_ne!(changed, body, "{old} is in {body}");
            assert_eq!(parse(with_sum(&changed).as_bytes()), None, "{changed}");
        }
        for us in ["NaN", "inf", "-1", "1e3"] {
            let changed = body.split(" us=").next().unwrap().to_owned() + " us=" + us;
            assert_eq!(parse(with_sum(&changed).as_bytes()), None, "{changed}");
        }
        assert_eq!(parse(with_sum(&(body + " more=1")).as_bytes()), None);
    }

    #[test]
    fn a_time_that_is_none_is_not_written() {
        let Kept { gemm, choice, .. } = all()[0];
        for us in [f32::NAN, f32::INFINITY, -1.0] {
            let kept = Kept::new(&gemm, choice, Some(us));
            assert_eq!(kept.us, None);
            assert_eq!(parse(kept.to_string().as_bytes()), Some(kept));
        }
    }
}
