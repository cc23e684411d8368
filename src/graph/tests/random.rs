//! Random blocks: whatever the rules do, results, draws and sharing of memory
//! stay the same. `HYPATIA_FUZZ_SECONDS` makes it run for that long.

use std::time::{Duration, Instant};

use super::builder::Builder;
use super::interpreter::{run, same};
use super::session;
use crate::graph::records::StepKind;

/// A random block whose original can be run; `None` if this seed makes none.
pub fn block(seed: u64) -> Option<Builder> {
    let mut b = Builder::seeded(!seed.is_multiple_of(4), seed);
    for _ in 0..3 {
        b.next();
    }
    let width = 2 + b.below(3) as i64;
    let rows = 1 + b.below(3) as i64;
    let mut tensors = vec![(b.input(&[rows, width]), rows, width)];
    if b.below(2) == 0 {
        tensors.push((b.input(&[rows, width + 1]), rows, width + 1));
    }
    if b.below(2) == 0 {
        let sizes = b.ints(&[-1, width]);
        let x = b.node("aten::view", &[tensors[0].0, sizes]);
        tensors.push((x, rows, width));
    }
    let (one, minus) = (b.int(1), b.int(-1));
    let count = 2 + b.below(10);
    for _ in 0..count {
        // Mostly the newest: deep graphs find more than wide ones.
        let pick = if b.below(3) == 0 { b.below(tensors.len()) } else { tensors.len() - 1 };
        let (x, m, k) = tensors[pick];
        let n = 1 + b.below(5) as i64;
        let made = match b.below(24) {
            0..=4 => (b.linear(x, n, k), m, n),
            5 => (b.bare_linear(x, n, k), m, n),
            6..=9 => (b.relu(x), m, k),
            10 => {
                let (a, bias) = (b.parameter(&[k, n]), b.parameter(&[n]));
                let odd = b.below(4) == 0;
                let alpha = b.int(if odd { 2 } else { 1 });
                (b.node("aten::addmm", &[bias, x, a, one, alpha]), m, n)
            }
            11 => {
                let w = b.parameter(&[n, k]);
                let wt = b.node("aten::t", &[w]);
                (b.node("aten::matmul", &[x, wt]), m, n)
            }
            12 => {
                let shape: &[i64] = match b.below(4) {
                    0 => &[k],
                    1 => &[1],
                    2 => &[m, 1],
                    _ => &[1, k],
                };
                let c = b.parameter(shape);
                let alpha = if b.below(5) == 0 { minus } else { one };
                let pair = if b.below(2) == 0 { [x, c, alpha] } else { [c, x, alpha] };
                let kind = if b.below(4) == 0 { "aten::sub" } else { "aten::add" };
                (b.node(kind, &pair), m, k)
            }
            13 => {
                let c = match b.below(4) {
                    0 => b.float(-1.5),
                    1 => b.parameter(&[m, 1]),
                    2 => b.parameter(&[1]),
                    _ => b.parameter(&[k]),
                };
                (b.node("aten::mul", &[x, c]), m, k)
            }
            14 => (b.batch_norm(x, k, false), m, k),
            15 => {
                let flag = match b.below(3) {
                    0 => b.flag(false),
                    1 => b.flag(true),
                    _ => b.dynamic_flag(),
                };
                (b.dropout(x, flag), m, k)
            }
            16 => {
                let (y, m2, n2) = tensors[b.below(tensors.len())];
                if m2 != m {
                    continue;
                }
                (b.cat(&[x, y], -1), m, k + n2)
            }
            17 => {
                let (y, m2, n2) = tensors[b.below(tensors.len())];
                if (m2, n2) != (m, k) {
                    continue;
                }
                let alpha = if b.below(3) == 0 { minus } else { one };
                (b.node("aten::add", &[x, y, alpha]), m, k)
            }
            18 => {
                let sizes = b.ints(&[m * k, 1]);
                (b.node("aten::reshape", &[x, sizes]), m * k, 1)
            }
            19 => {
                let odd = b.below(3) == 0;
                let limit = b.int(odd.into());
                (b.node("aten::clamp_min", &[x, limit]), m, k)
            }
            20 => (b.wall("test::square_root", &[x]), m, k),
            21 | 22 => {
                // Of sizes that only this run knows.
                let (zero, last) = (b.int(0), b.int(-1));
                let rows = b.node("aten::size", &[x, zero]);
                let sizes = b.node("prim::ListConstruct", &[rows, last]);
                (b.node("aten::view", &[x, sizes]), m, k)
            }
            _ => {
                let odd = b.below(3) == 0;
                let (zero, value) = (b.int(0), b.int(odd.into()));
                (b.node("aten::threshold", &[x, zero, value]), m, k)
            }
        };
        tensors.push(made);
    }
    let mut outputs = vec![tensors[tensors.len() - 1].0];
    for _ in 0..b.below(3) {
        let other = tensors[b.below(tensors.len())].0;
        outputs.push(other);
    }
    let b = b.returns(&outputs);
    run(&b, false).ok().map(|_| b)
}

/// The difference that one seed shows, if any; `guard` is switched off.
pub fn difference(seed: u64, guard: Option<&str>) -> Option<String> {
    let b = block(seed)?;
    let mut session = match guard {
        Some(guard) => session().without_guard(guard),
        None => session(),
    };
    let edits = match session.optimize(b.block.clone()) {
        Ok(edits) => edits,
        Err(error) => return Some(error),
    };
    let report = session.report();
    if report.stop_reason.starts_with("unsound") {
        return Some(report.stop_reason.clone());
    }
    if report.cost_after > report.cost_before + 1e-9 {
        return Some("costlier".into());
    }
    same(&b, &edits).err()
}

#[test]
fn random_blocks_compute_the_same() {
    let seconds = std::env::var("HYPATIA_FUZZ_SECONDS").ok().and_then(|s| s.parse::<u64>().ok());
    let start = Instant::now();
    let (mut ran, mut seed) = (0, seconds.map_or(1, |_| u64::from(std::process::id()) << 24));
    let more = |ran: u64| match seconds {
        Some(limit) => start.elapsed() < Duration::from_secs(limit),
        None => ran < 3000,
    };
    while more(ran) {
        if let Some(difference) = difference(seed, None) {
            panic!("seed {seed}: {difference}\n{}", describe(seed));
        }
        ran += 1;
        seed += 1;
    }
    println!("{ran} random blocks in {:.1?}", start.elapsed());
}

/// What a person needs to see of a failing seed.
pub fn describe(seed: u64) -> String {
    let Some(b) = block(seed) else { return String::new() };
    let nodes = b.block.nodes.iter().filter(|n| !n.kind.starts_with("prim::Con"));
    let mut text: Vec<String> =
        nodes.map(|n| format!("{:?} = {} {:?}", n.outputs, n.kind, n.inputs)).collect();
    text.push(format!("returns {:?}", b.block.outputs));
    if let Ok(edits) = session().optimize(b.block.clone()) {
        for (n, step) in edits.steps.iter().enumerate() {
            let is_constant = |kind: &str| kind.starts_with("prim::Con");
            if !is_constant(&b.block.nodes[step.node as usize].kind) || step.kind != StepKind::Keep
            {
                text.push(format!(
                    "{}: {:?} {:?} {:?}",
                    b.block.values.len() + n,
                    step.kind,
                    step.node,
                    step.inputs
                ));
            }
        }
        text.push(format!("{:?}", edits.replacements));
    }
    text.join("\n")
}
