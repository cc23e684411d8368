//! Whether two outputs are the same within rounding.

use std::fmt::Write;

use crate::graph::report::quoted;

/// One tensor or number beside its counterpart.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Leaf {
    /// `output[0]`
    pub path: String,
    /// The dtype, or what was expected if there is a mismatch.
    pub what: String,
    /// Elements compared.
    pub elements: i64,
    /// Not comparable: what came instead. Otherwise empty.
    pub mismatch: String,
    /// The largest |a − b|, and where.
    pub max_abs: (f64, String),
    /// The largest |a − b| / |a|, and where.
    pub max_rel: (f64, String),
    /// The largest |a − b| / (|a| + max |a|), and where.
    pub worst: (f64, String),
}

/// What all leaves say together.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// What is wrong, `expected …, got …`; the first of it.
    pub wrong: Option<String>,
    /// Elements compared.
    pub elements: i64,
    /// The largest, and where.
    pub max_abs: (f64, String),
    /// The largest, and where.
    pub max_rel: (f64, String),
    /// dtypes and their bounds.
    pub bounds: Vec<(String, f64)>,
}

/// How far the elements of a dtype may be apart, as a part of the element plus
/// the largest of its tensor: 2¹⁰ roundings where sums are kept in the dtype,
/// 2⁴ where they are kept in fp32 and rounded once a layer. Zero: not at all.
#[must_use]
pub fn bound(dtype: &str) -> f64 {
    match dtype {
        "Double" | "ComplexDouble" => f64::EPSILON * 1024.0,
        "Float" | "ComplexFloat" => f64::from(f32::EPSILON) * 1024.0,
        "Half" | "ComplexHalf" => 16.0 / 1024.0,
        "BFloat16" => 16.0 / 128.0,
        _ => 0.0,
    }
}

/// Judges all leaves.
#[must_use]
pub fn judge(leaves: &[Leaf]) -> Verdict {
    let mut verdict = Verdict::default();
    for leaf in leaves {
        let limit = bound(&leaf.what);
        let wrong = if !leaf.mismatch.is_empty() {
            Some(format!("expected {} in {}, got {}", leaf.what, leaf.path, leaf.mismatch))
        // Not `>`: a NaN is no agreement.
        } else if leaf.worst.0 <= limit {
            None
        } else {
            Some(format!(
                "expected {}{} within {limit:.1e} of the original, relative to its size, got {:.1e}",
                leaf.path, leaf.worst.1, leaf.worst.0
            ))
        };
        verdict.wrong = verdict.wrong.or(wrong);
        verdict.elements += leaf.elements;
        if !leaf.mismatch.is_empty() || leaf.elements == 0 {
            continue;
        }
        let at = |place: &str| format!("{}{place}", leaf.path);
        if verdict.max_abs.1.is_empty() || leaf.max_abs.0 > verdict.max_abs.0 {
            verdict.max_abs = (leaf.max_abs.0, at(&leaf.max_abs.1));
        }
        if verdict.max_rel.1.is_empty() || leaf.max_rel.0 > verdict.max_rel.0 {
            verdict.max_rel = (leaf.max_rel.0, at(&leaf.max_rel.1));
        }
        if !verdict.bounds.iter().any(|(what, _)| *what == leaf.what) {
            verdict.bounds.push((leaf.what.clone(), limit));
        }
    }
    verdict
}

impl Verdict {
    /// Some lines for people.
    #[must_use]
    pub fn text(&self, inputs: &[String]) -> String {
        let mut out = String::from("check\n");
        // Writing to a String cannot fail.
        for input in inputs {
            let _ = writeln!(out, "  input      {input}");
        }
        if self.elements == 0 {
            out.push_str("  compared   nothing: the outputs have no elements\n");
        } else {
            let _ = writeln!(out, "  compared   {} elements", self.elements);
        }
        if !self.max_abs.1.is_empty() {
            let _ = writeln!(out, "  absolute   {:.2e} at {}", self.max_abs.0, self.max_abs.1);
            let _ = writeln!(out, "  relative   {:.2e} at {}", self.max_rel.0, self.max_rel.1);
        }
        for (what, bound) in &self.bounds {
            let _ = writeln!(out, "  bound      {bound:.1e} for {what}");
        }
        let _ = writeln!(out, "  result     {}", self.wrong.as_deref().unwrap_or("ok"));
        out
    }

    /// The same as JSON; infinity, which JSON lacks, is null.
    #[must_use]
    pub fn json(&self) -> String {
        let number = |x: f64| if x.is_finite() { format!("{x:e}") } else { "null".to_owned() };
        format!(
            "{{\"ok\": {}, \"elements\": {}, \"max_abs\": {}, \"max_abs_at\": {}, \"max_rel\": {}, \
             \"max_rel_at\": {}, \"wrong\": {}}}",
            self.wrong.is_none(),
            self.elements,
            number(self.max_abs.0),
            quoted(&self.max_abs.1),
            number(self.max_rel.0),
            quoted(&self.max_rel.1),
            self.wrong.as_deref().map_or_else(|| "null".to_owned(), quoted),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(what: &str, worst: f64) -> Leaf {
        Leaf {
            path: "output[0]".into(),
            what: what.into(),
            elements: 4,
            max_abs: (worst * 3.0, "[1, 2]".into()),
            max_rel: (worst * 2.0, "[0, 1]".into()),
            worst: (worst, "[1, 2]".into()),
            ..Leaf::default()
        }
    }

    #[test]
    fn rounding_is_fine_and_more_is_not() {
        for (what, fine, wrong) in [
            ("Float", 1e-6, 1e-3),
            ("Double", 1e-14, 1e-9),
            ("Half", 2e-3, 5e-2),
            ("BFloat16", 2e-2, 0.3),
            ("ComplexFloat", 1e-6, 1e-3),
            ("Long", 0.0, 1e-9),
            ("Bool", 0.0, 1.0),
            ("QInt8", 0.0, 1e-3),
        ] {
            assert_eq!(judge(&[leaf(what, fine)]).wrong, None, "{what}");
            assert!(judge(&[leaf(what, wrong)]).wrong.is_some(), "{what}");
        }
    }

    #[test]
    fn nan_and_infinity_are_no_agreement() {
        for worst in [f64::NAN, f64::INFINITY] {
            assert!(judge(&[leaf("Float", worst)]).wrong.is_some());
        }
    }

    #[test]
    fn a_mismatch_is_wrong_whatever_else_fits() {
        let other = Leaf { mismatch: "Int".into(), ..leaf("Tensor", 0.0) };
        let verdict = judge(&[leaf("Float", 0.0), other]);
        assert_eq!(verdict.wrong.as_deref(), Some("expected Tensor in output[0], got Int"));
    }

    #[test]
    fn the_largest_errors_and_their_places() {
        let mut second = leaf("Float", 2.0);
        second.path = "output[1]".into();
        let verdict = judge(&[leaf("Float", 0.25), second, leaf("Float", 0.5)]);
        assert_eq!(verdict.max_abs, (6.0, "output[1][1, 2]".into()));
        assert_eq!(verdict.max_rel, (4.0, "output[1][0, 1]".into()));
        assert_eq!(verdict.elements, 12);
        assert_eq!(verdict.bounds.len(), 1);
        let text = verdict.text(&["x: f32[8, 4] (given)".into()]);
        assert!(text.contains("absolute   6.00e0 at output[1][1, 2]\n"), "{text}");
        assert!(text.contains("input      x: f32[8, 4] (given)\n"), "{text}");
        // The first that is wrong, not the worst.
        assert!(text.contains("  result     expected output[0][1, 2] within 1.2e-4"), "{text}");
        assert!(judge(&[]).text(&[]).ends_with("  result     ok\n"));
    }

    #[test]
    fn nothing_compared_is_said() {
        let empty = Leaf { elements: 0, ..leaf("Float", 0.0) };
        assert!(judge(&[empty]).text(&[]).contains("compared   nothing"));
        assert!(judge(&[]).text(&[]).contains("compared   nothing"));
    }

    #[test]
    fn json_has_no_infinity() {
        let json = judge(&[leaf("Float", f64::INFINITY)]).json();
        assert!(json.starts_with("{\"ok\": false, \"elements\": 4, \"max_abs\": null"), "{json}");
        assert!(json.contains("\"wrong\": \"expected output[0][1, 2] within 1.2e-4"), "{json}");
        assert!(judge(&[leaf("Float", 0.0)]).json().contains("\"max_abs\": 0e0"));
    }
}
