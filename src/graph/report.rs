//! What `explain` says: counts, predicted times, every rewrite and everything
//! that was left alone, with the reason.

use std::collections::BTreeMap;
use std::fmt::Write;

/// A rewrite that is in the result.
#[derive(Debug, Clone, PartialEq)]
pub struct Rewrite {
    /// The rule's name.
    pub rule: String,
    /// Block and value.
    pub at: String,
    /// Predicted µs: negative is faster.
    pub cost_delta: f64,
}

/// Everything that `explain` says.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Name of the profile that predicted the times.
    pub profile: String,
    /// Where sizes came from.
    pub shapes: String,
    /// Why each search ended; the worst one is reported.
    pub stop_reason: String,
    /// Nodes that compute, before.
    pub nodes_before: usize,
    /// Nodes that compute, after.
    pub nodes_after: usize,
    /// Predicted µs of one call.
    pub cost_before: f64,
    /// Predicted µs of one call.
    pub cost_after: f64,
    /// What was done.
    pub rewrites: Vec<Rewrite>,
    /// Where, and why not.
    pub skipped: Vec<(String, String)>,
    /// Fused operators in the result.
    pub fused_ops: BTreeMap<String, usize>,
}

impl Report {
    /// The JSON of `hypatia::explain`.
    pub fn json(&self) -> String {
        let mut out = String::from("{");
        let stop = if self.stop_reason.is_empty() { "saturated" } else { &self.stop_reason };
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "\"stop_reason\": {}, \"profile\": {}, \"shapes\": {}, \"nodes_before\": {}, \
             \"nodes_after\": {}, \"cost_before\": {:.3}, \"cost_after\": {:.3}, \"rewrites\": [",
            quoted(stop),
            quoted(&self.profile),
            quoted(&self.shapes),
            self.nodes_before,
            self.nodes_after,
            self.cost_before,
            self.cost_after,
        );
        for (n, rewrite) in self.rewrites.iter().enumerate() {
            let _ = write!(
                out,
                "{}{{\"rule\": {}, \"at\": {}, \"cost_delta\": {:.3}}}",
                if n == 0 { "" } else { ", " },
                quoted(&rewrite.rule),
                quoted(&rewrite.at),
                rewrite.cost_delta
            );
        }
        out.push_str("], \"skipped\": [");
        for (n, (at, reason)) in self.skipped.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            let (at, reason) = (quoted(at), quoted(reason));
            let _ = write!(out, "{comma}{{\"at\": {at}, \"reason\": {reason}}}");
        }
        out.push_str("], \"fused_ops\": {");
        for (n, (name, count)) in self.fused_ops.iter().enumerate() {
            let _ = write!(out, "{}{}: {count}", if n == 0 { "" } else { ", " }, quoted(name));
        }
        out.push_str("}}");
        out
    }
}

/// A JSON string.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if (c as u32) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_complete_and_escaped() {
        let report = Report {
            rewrites: vec![Rewrite { rule: "r".into(), at: "a\"b\n".into(), cost_delta: -1.5 }],
            skipped: vec![("x".into(), "why".into())],
            fused_ops: BTreeMap::from([("hypatia::fused_mlp".into(), 2)]),
            ..Report::default()
        };
        let json = report.json();
        assert!(json.contains(r#""at": "a\"b\u000a", "cost_delta": -1.500"#), "{json}");
        assert!(json.contains(r#""stop_reason": "saturated""#), "{json}");
        assert!(json.contains(r#""skipped": [{"at": "x", "reason": "why"}]"#), "{json}");
        assert!(json.ends_with(r#""fused_ops": {"hypatia::fused_mlp": 2}}"#), "{json}");
    }
}
