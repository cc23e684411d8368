//! The report for people.

use std::fmt::Write;

use crate::graph::report::Report;

/// A few lines of facts, then every rewrite and everything left alone.
#[must_use]
pub fn render(model: &str, report: &Report) -> String {
    let mut out = format!("{model}\n");
    let stop = if report.stop_reason.is_empty() { "saturated" } else { &report.stop_reason };
    let (before, after) = (report.cost_before, report.cost_after);
    let change = if before > 0.0 { (after / before - 1.0) * 100.0 } else { 0.0 };
    let fused: Vec<String> =
        report.fused_ops.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let facts = [
        ("nodes", format!("{} → {}", report.nodes_before, report.nodes_after)),
        ("predicted", format!("{before:.1} → {after:.1} µs a call ({change:+.0} %)")),
        ("profile", report.profile.clone()),
        ("shapes", report.shapes.clone()),
        ("search", stop.to_owned()),
        ("fused", if fused.is_empty() { "nothing".to_owned() } else { fused.join(", ") }),
    ];
    // Writing to a String cannot fail.
    for (name, value) in facts {
        let _ = writeln!(out, "  {name:<10} {}", plain(&value));
    }
    if !report.rewrites.is_empty() {
        let _ = writeln!(out, "\n{} done", report.rewrites.len());
        let rule = widest(report.rewrites.iter().map(|rewrite| rewrite.rule.as_str()));
        for rewrite in &report.rewrites {
            let (name, at) = (plain(&rewrite.rule), plain(&rewrite.at));
            let _ = writeln!(out, "  {name:<rule$} {:>8.2} µs  {at}", rewrite.cost_delta);
        }
    }
    if !report.skipped.is_empty() {
        let _ = writeln!(out, "\n{} left alone", report.skipped.len());
        let width = widest(report.skipped.iter().map(|(at, _)| at.as_str()));
        for (at, reason) in &report.skipped {
            let _ = writeln!(out, "  {:<width$}  {}", plain(at), plain(reason));
        }
    }
    out
}

/// Columns as wide as their widest entry, unless that is absurd.
fn widest<'a>(texts: impl Iterator<Item = &'a str>) -> usize {
    texts.map(|text| text.chars().count()).max().unwrap_or(0).min(60)
}

/// Names come from the file: no line breaks or escape sequences of theirs.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::report::Rewrite;
    use std::collections::BTreeMap;

    #[test]
    fn everything_is_in_it() {
        let report = Report {
            profile: "cpu".into(),
            shapes: "given".into(),
            nodes_before: 4,
            nodes_after: 3,
            cost_before: 10.0,
            cost_after: 7.5,
            rewrites: vec![Rewrite {
                rule: "fuse".into(),
                at: "forward: x\u{1b}[31m\ny".into(),
                cost_delta: -2.5,
            }],
            skipped: vec![("a".into(), "because".into()), ("long: b".into(), "why".into())],
            fused_ops: BTreeMap::from([("hypatia::fused_linear_relu".into(), 2)]),
            ..Report::default()
        };
        let expected = "\
m.pt
  nodes      4 → 3
  predicted  10.0 → 7.5 µs a call (-25 %)
  profile    cpu
  shapes     given
  search     saturated
  fused      2 hypatia::fused_linear_relu

1 done
  fuse    -2.50 µs  forward: x [31m y

2 left alone
  a        because
  long: b  why
";
        assert_eq!(render("m.pt", &report), expected);
    }

    #[test]
    fn an_empty_report_has_no_empty_sections() {
        let text = render("m.pt", &Report::default());
        assert!(text.contains("(+0 %)") && text.contains("fused      nothing"), "{text}");
        assert!(!text.contains("done") && !text.contains("left alone"), "{text}");
    }
}
