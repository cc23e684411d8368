//! Runs blocks and their replacements in fp64: what they compute, which random
//! draws they make in which order, and which results share memory.

use std::collections::HashMap;

use super::builder::Builder;
use crate::graph::ops;
use crate::graph::records::{Block, Edits, Step, StepKind, ValueKind};

/// A dense tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<i64>,
    pub data: Vec<f64>,
}

/// Anything a value can be.
#[derive(Debug, Clone)]
pub enum Item {
    /// With the number of its memory.
    Tensor(Tensor, usize),
    List(Vec<Item>),
    Number(f64),
    Ints(Vec<i64>),
    None,
}

/// What a run shows.
#[derive(Debug)]
pub struct Run {
    pub outputs: Vec<Tensor>,
    /// Memory of each output.
    pub memory: Vec<usize>,
    /// Which elements each draw kept, in order.
    pub draws: usize,
}

struct Machine {
    items: HashMap<u32, Item>,
    memory: usize,
    draws: usize,
}

/// Runs the original.
pub fn run(builder: &Builder, training: bool) -> Result<Run, String> {
    let mut machine = Machine::new(builder, training);
    let block = &builder.block;
    for node in &block.nodes {
        machine.execute(&node.kind, &node.inputs, &node.outputs, &HashMap::new())?;
    }
    machine.finish(block, &HashMap::new())
}

/// Writes the sizes of one run into the block, as tracing does.
pub fn record(builder: &mut Builder) -> Result<(), String> {
    let mut machine = Machine::new(builder, false);
    for node in &builder.block.nodes {
        machine.execute(&node.kind, &node.inputs, &node.outputs, &HashMap::new())?;
    }
    let shapes: Vec<(u32, Vec<i64>)> = machine
        .items
        .iter()
        .filter_map(|(value, item)| Some((*value, tensor(item).ok()?.shape)))
        .collect();
    for (value, shape) in shapes {
        builder.block.values[value as usize].hint = Some(shape);
    }
    Ok(())
}

/// Runs the replacement, and checks that it is in order.
pub fn run_edits(builder: &Builder, edits: &Edits, training: bool) -> Result<Run, String> {
    if !edits.changed {
        return run(builder, training);
    }
    let block = &builder.block;
    let renamed: HashMap<u32, u32> = edits.replacements.iter().copied().collect();
    // C++ replaces one after the other.
    if let Some((old, new)) = edits.replacements.iter().find(|(_, new)| renamed.contains_key(new)) {
        return Err(format!("{old} becomes {new}, which becomes something else"));
    }
    let mut machine = Machine::new(builder, training);
    for (n, step) in edits.steps.iter().enumerate() {
        let result = (block.values.len() + n) as u32;
        machine.step(block, step, result, &renamed)?;
    }
    machine.finish(block, &renamed)
}

impl Machine {
    fn new(builder: &Builder, training: bool) -> Self {
        let mut machine = Self { items: HashMap::new(), memory: 0, draws: 0 };
        let mut numbers: Vec<_> = (0..builder.block.values.len() as u32).collect();
        numbers.sort_unstable();
        for number in numbers {
            let value = &builder.block.values[number as usize];
            let item = match value.kind {
                ValueKind::Tensor => match builder.data.get(&number) {
                    Some(tensor) => machine.fresh(tensor.clone()),
                    None => continue,
                },
                ValueKind::Int | ValueKind::Bool if value.known => Item::Number(value.int as f64),
                ValueKind::Float if value.known => Item::Number(value.float),
                ValueKind::Ints if value.known => Item::Ints(value.ints.clone()),
                ValueKind::None => Item::None,
                ValueKind::Bool => Item::Number(f64::from(u8::from(training))),
                _ => continue,
            };
            machine.items.insert(number, item);
        }
        machine
    }

    fn fresh(&mut self, tensor: Tensor) -> Item {
        self.memory += 1;
        Item::Tensor(tensor, self.memory)
    }

    fn get(&self, value: u32, renamed: &HashMap<u32, u32>) -> Result<Item, String> {
        let value = renamed.get(&value).copied().unwrap_or(value);
        self.items.get(&value).cloned().ok_or_else(|| format!("value {value} does not exist yet"))
    }

    fn step(
        &mut self,
        block: &Block,
        step: &Step,
        result: u32,
        renamed: &HashMap<u32, u32>,
    ) -> Result<(), String> {
        let none = HashMap::new();
        let item = match &step.kind {
            StepKind::Keep => {
                let node = &block.nodes[step.node as usize];
                return self.execute(&node.kind, &node.inputs, &node.outputs, renamed);
            }
            StepKind::Int(v) => Item::Number(*v as f64),
            StepKind::Float(v) => Item::Number(*v),
            StepKind::Bool(v) => Item::Number(f64::from(u8::from(*v))),
            StepKind::None => Item::None,
            StepKind::Ints(v) => Item::Ints(v.clone()),
            StepKind::Tensors | StepKind::OptionalTensors => {
                return self.execute("prim::ListConstruct", &step.inputs, &[result], &none)
            }
            StepKind::Make(kind) => {
                return self.execute(kind, &step.inputs, &[result], &none);
            }
            StepKind::Fold { op, ints, float, .. } => {
                let inputs: Result<Vec<Tensor>, String> =
                    step.inputs.iter().map(|v| tensor(&self.get(*v, &none)?)).collect();
                let folded = fold(op, &inputs?, ints, *float)?;
                self.fresh(folded)
            }
        };
        self.items.insert(result, item);
        Ok(())
    }

    fn execute(
        &mut self,
        kind: &str,
        inputs: &[u32],
        outputs: &[u32],
        renamed: &HashMap<u32, u32>,
    ) -> Result<(), String> {
        if matches!(kind, "prim::Constant" | "prim::GetAttr") {
            return Ok(());
        }
        let args: Vec<Item> =
            inputs.iter().map(|v| self.get(*v, renamed)).collect::<Result<_, _>>()?;
        let item = self.apply(kind, &args).map_err(|error| format!("{kind}: {error}"))?;
        self.items.insert(outputs[0], item);
        Ok(())
    }

    fn apply(&mut self, kind: &str, args: &[Item]) -> Result<Item, String> {
        if kind == "prim::ListConstruct" {
            return Ok(Item::List(args.to_vec()));
        }
        if kind == "aten::dim" {
            return Ok(Item::Number(tensor(&args[0])?.shape.len() as f64));
        }
        if kind == "aten::size" {
            let shape = tensor(&args[0])?.shape;
            let dim = axis(number(&args[1])? as i64, shape.len())?;
            return Ok(Item::Number(shape[dim] as f64));
        }
        if kind == "aten::dropout" {
            if number(&args[2])? == 0.0 {
                return Ok(args[0].clone());
            }
            self.draws += 1;
            let mut x = tensor(&args[0])?;
            // The draw depends on how many came before, as a generator's does.
            for (n, v) in x.data.iter_mut().enumerate() {
                let kept = (n * 7 + self.draws * 13) % 5 < 3;
                *v *= if kept { 2.0 } else { 0.0 };
            }
            return Ok(self.fresh(x));
        }
        let result = compute(kind, args)?;
        let view = ops::lookup(kind).is_some_and(|known| known.nature.may_view());
        match (&args[0], view) {
            (Item::Tensor(_, memory), true) => Ok(Item::Tensor(result, *memory)),
            _ => Ok(self.fresh(result)),
        }
    }

    fn finish(self, block: &Block, renamed: &HashMap<u32, u32>) -> Result<Run, String> {
        let mut run = Run { outputs: vec![], memory: vec![], draws: self.draws };
        for &output in &block.outputs {
            match self.get(output, renamed)? {
                Item::Tensor(tensor, memory) => {
                    run.outputs.push(tensor);
                    run.memory.push(memory);
                }
                Item::Number(value) => {
                    run.outputs.push(Tensor { shape: vec![], data: vec![value] });
                    run.memory.push(usize::MAX);
                }
                other => return Err(format!("a block returns {other:?}")),
            }
        }
        Ok(run)
    }
}

fn tensor(item: &Item) -> Result<Tensor, String> {
    match item {
        Item::Tensor(tensor, _) => Ok(tensor.clone()),
        other => Err(format!("expected a tensor, got {other:?}")),
    }
}

fn number(item: &Item) -> Result<f64, String> {
    match item {
        Item::Number(number) => Ok(*number),
        other => Err(format!("expected a number, got {other:?}")),
    }
}

fn axis(dim: i64, rank: usize) -> Result<usize, String> {
    let rank = rank as i64;
    let dim = if dim < 0 { dim + rank } else { dim };
    if (0..rank).contains(&dim) {
        Ok(dim as usize)
    } else {
        Err(format!("dimension {dim} of {rank}"))
    }
}

fn compute(kind: &str, args: &[Item]) -> Result<Tensor, String> {
    let list = |n: usize| match &args[n] {
        Item::List(items) => items.iter().map(tensor).collect::<Result<Vec<_>, _>>(),
        other => Err(format!("expected a list, got {other:?}")),
    };
    match kind {
        "aten::cat" => cat(&list(0)?, number(&args[1])? as i64),
        "hypatia::fused_mlp" => {
            let (weights, Item::List(biases)) = (list(1)?, &args[2]) else {
                return Err("biases".into());
            };
            let last = number(&args[3])? != 0.0;
            let mut x = tensor(&args[0])?;
            for (n, w) in weights.iter().enumerate() {
                x = linear(&x, w, &biases[n])?;
                if n + 1 < weights.len() || last {
                    x = map(x, relu);
                }
            }
            Ok(x)
        }
        _ => {
            let x = tensor(&args[0]);
            match kind {
                "aten::mul" | "aten::add" | "aten::sub" | "aten::div" => arithmetic(kind, args),
                "aten::linear" => linear(&x?, &tensor(&args[1])?, &args[2]),
                "hypatia::fused_linear_relu" => {
                    Ok(map(linear(&x?, &tensor(&args[1])?, &args[2])?, relu))
                }
                "aten::relu" => Ok(map(x?, relu)),
                "test::square_root" => Ok(map(x?, |v| v.abs().sqrt() - 0.5)),
                "aten::sigmoid" => Ok(map(x?, |v| 1.0 / (1.0 + (-v).exp()))),
                "aten::clamp_min" => {
                    let least = number(&args[1])?;
                    Ok(map(x?, |v| v.max(least)))
                }
                "aten::threshold" => {
                    let (limit, value) = (number(&args[1])?, number(&args[2])?);
                    Ok(map(x?, |v| if v <= limit { value } else { v }))
                }
                "aten::addmm" => {
                    let (beta, alpha) = (number(&args[3])?, number(&args[4])?);
                    let product = matmul(&tensor(&args[1])?, &tensor(&args[2])?)?;
                    let product = map(product, |v| v * alpha);
                    broadcast(&product, &map(x?, |v| v * beta), |a, b| a + b)
                }
                "aten::matmul" | "aten::mm" => matmul(&x?, &tensor(&args[1])?),
                "aten::t" => {
                    let x = x?;
                    Ok(if x.shape.len() == 2 { transpose(&x) } else { x })
                }
                "aten::transpose" => {
                    swap(&x?, number(&args[1])? as usize, number(&args[2])? as usize)
                }
                "aten::batch_norm" => batch_norm(&x?, args),
                "aten::view" | "aten::reshape" => match &args[1] {
                    Item::Ints(sizes) => reshape(x?, sizes),
                    Item::List(sizes) => {
                        let sizes: Result<Vec<i64>, _> =
                            sizes.iter().map(|s| number(s).map(|s| s as i64)).collect();
                        reshape(x?, &sizes?)
                    }
                    other => Err(format!("sizes {other:?}")),
                },
                "aten::flatten" => {
                    let (x, from) = (x?, number(&args[1])? as i64);
                    let from = axis(from, x.shape.len())?;
                    let mut sizes = x.shape[..from].to_vec();
                    sizes.push(-1);
                    reshape(x, &sizes)
                }
                "aten::slice" => {
                    let (start, end) = (number(&args[2])? as usize, number(&args[3])? as usize);
                    Ok(columns(&x?, start, end))
                }
                "aten::amax" => {
                    let x = x?;
                    let last = x.shape.last().copied().unwrap_or(1).max(1) as usize;
                    let data =
                        x.data.chunks(last).map(|r| r.iter().copied().fold(f64::MIN, f64::max));
                    let data = data.collect();
                    let mut shape = x.shape.clone();
                    shape.pop();
                    Ok(Tensor { shape, data })
                }
                _ => Err("not known to the interpreter".into()),
            }
        }
    }
}

fn relu(v: f64) -> f64 {
    if v > 0.0 || v.is_nan() {
        v
    } else {
        0.0
    }
}

fn map(mut x: Tensor, f: impl Fn(f64) -> f64) -> Tensor {
    x.data.iter_mut().for_each(|v| *v = f(*v));
    x
}

fn arithmetic(kind: &str, args: &[Item]) -> Result<Tensor, String> {
    let alpha = args.get(2).map_or(Ok(1.0), number)?;
    let op = |a: f64, b: f64| match kind {
        "aten::mul" => a * b,
        "aten::div" => a / b,
        "aten::add" => a + alpha * b,
        _ => a - alpha * b,
    };
    let (left, right) = (&args[0], &args[1]);
    match (left, right) {
        (Item::Tensor(a, _), Item::Tensor(b, _)) => broadcast(a, b, op),
        (Item::Tensor(a, _), other) => {
            let b = number(other)?;
            Ok(map(a.clone(), |a| op(a, b)))
        }
        _ => Err("operands".into()),
    }
}

fn broadcast(a: &Tensor, b: &Tensor, f: impl Fn(f64, f64) -> f64) -> Result<Tensor, String> {
    let rank = a.shape.len().max(b.shape.len());
    let padded = |t: &Tensor| {
        let mut shape = vec![1; rank - t.shape.len()];
        shape.extend(&t.shape);
        shape
    };
    let (sa, sb) = (padded(a), padded(b));
    let mut shape = vec![];
    for (x, y) in sa.iter().zip(&sb) {
        match (*x, *y) {
            (x, y) if x == y => shape.push(x),
            (1, y) => shape.push(y),
            (x, 1) => shape.push(x),
            (x, y) => return Err(format!("sizes {x} and {y}")),
        }
    }
    let count = shape.iter().product::<i64>() as usize;
    let at = |flat: usize, own: &[i64]| {
        let (mut rest, mut index, mut stride) = (flat, 0, 1);
        for d in (0..rank).rev() {
            let place = rest % shape[d] as usize;
            rest /= shape[d] as usize;
            if own[d] != 1 {
                index += place * stride;
            }
            stride *= own[d] as usize;
        }
        index
    };
    let data = (0..count).map(|n| f(a.data[at(n, &sa)], b.data[at(n, &sb)])).collect();
    Ok(Tensor { shape, data })
}

fn linear(x: &Tensor, w: &Tensor, b: &Item) -> Result<Tensor, String> {
    let y = matmul(x, &transpose(w))?;
    match b {
        Item::None => Ok(y),
        // As the operators insist, and aten::linear does for some inputs.
        b if tensor(b)?.shape != [w.shape[0]] => Err("the bias is not [N]".into()),
        b => broadcast(&y, &tensor(b)?, |a, b| a + b),
    }
}

fn matmul(x: &Tensor, a: &Tensor) -> Result<Tensor, String> {
    if let &[k] = &a.shape[..] {
        let column = Tensor { shape: vec![k, 1], data: a.data.clone() };
        let mut y = matmul(x, &column)?;
        y.shape.pop();
        return Ok(y);
    }
    let (&[k, n], Some(&last)) = (&a.shape[..], x.shape.last()) else {
        return Err("not a matrix".into());
    };
    if last != k {
        return Err(format!("{:?} times {:?}", x.shape, a.shape));
    }
    let (k, n) = (k as usize, n as usize);
    let rows = x.shape[..x.shape.len() - 1].iter().product::<i64>() as usize;
    let mut data = vec![0.0; rows * n];
    for r in 0..rows {
        for c in 0..n {
            data[r * n + c] = (0..k).map(|i| x.data[r * k + i] * a.data[i * n + c]).sum();
        }
    }
    let mut shape = x.shape.clone();
    *shape.last_mut().ok_or("no dimension")? = n as i64;
    Ok(Tensor { shape, data })
}

fn transpose(x: &Tensor) -> Tensor {
    let (r, c) = (x.shape[0] as usize, x.shape[1] as usize);
    let data = (0..r * c).map(|n| x.data[n % r * c + n / r]).collect();
    Tensor { shape: vec![x.shape[1], x.shape[0]], data }
}

fn swap(x: &Tensor, a: usize, b: usize) -> Result<Tensor, String> {
    let mut shape = x.shape.clone();
    if a.max(b) >= shape.len() {
        return Err("dimensions".into());
    }
    let strides: Vec<usize> =
        (0..shape.len()).map(|d| shape[d + 1..].iter().product::<i64>() as usize).collect();
    shape.swap(a, b);
    let mut moved = strides.clone();
    moved.swap(a, b);
    let count = x.data.len();
    let at = |flat: usize| {
        let (mut rest, mut index) = (flat, 0);
        for d in (0..shape.len()).rev() {
            index += rest % shape[d] as usize * moved[d];
            rest /= shape[d] as usize;
        }
        index
    };
    Ok(Tensor { data: (0..count).map(|n| x.data[at(n)]).collect(), shape: shape.clone() })
}

fn reshape(x: Tensor, sizes: &[i64]) -> Result<Tensor, String> {
    let known: i64 = sizes.iter().filter(|&&s| s >= 0).product();
    let count = x.data.len() as i64;
    let shape: Vec<i64> =
        sizes.iter().map(|&s| if s >= 0 { s } else { count / known.max(1) }).collect();
    if shape.iter().product::<i64>() != count {
        return Err(format!("{count} elements as {shape:?}"));
    }
    Ok(Tensor { shape, data: x.data })
}

fn cat(parts: &[Tensor], dim: i64) -> Result<Tensor, String> {
    let dim = axis(dim, parts[0].shape.len())?;
    let inner = |t: &Tensor| t.shape[dim..].iter().product::<i64>() as usize;
    let outer = parts[0].shape[..dim].iter().product::<i64>() as usize;
    let mut data = vec![];
    for n in 0..outer {
        for part in parts {
            let size = inner(part);
            data.extend_from_slice(&part.data[n * size..(n + 1) * size]);
        }
    }
    let mut shape = parts[0].shape.clone();
    shape[dim] = parts.iter().map(|t| t.shape[dim]).sum();
    Ok(Tensor { shape, data })
}

fn columns(x: &Tensor, start: usize, end: usize) -> Tensor {
    let last = x.shape.last().copied().unwrap_or(1) as usize;
    let data = x.data.chunks(last).flat_map(|row| row[start..end].to_vec()).collect();
    let mut shape = x.shape.clone();
    if let Some(size) = shape.last_mut() {
        *size = (end - start) as i64;
    }
    Tensor { shape, data }
}

fn batch_norm(x: &Tensor, args: &[Item]) -> Result<Tensor, String> {
    let mut statistics = vec![];
    for item in &args[1..5] {
        statistics.push(tensor(item)?.data);
    }
    let eps = number(&args[7])?;
    let channels = x.shape[1] as usize;
    let inner = x.shape[2..].iter().product::<i64>() as usize;
    if statistics[0].len() != channels {
        return Err("channels".into());
    }
    // Training would normalise by the batch; any other numbers show a misuse.
    let training = number(&args[5])? != 0.0;
    let data = x.data.iter().enumerate().map(|(n, v)| {
        let c = n / inner % channels;
        let mean = if training { 0.25 } else { statistics[2][c] };
        (v - mean) / (statistics[3][c] + eps).sqrt() * statistics[0][c] + statistics[1][c]
    });
    Ok(Tensor { shape: x.shape.clone(), data: data.collect() })
}

/// As `cpp/graph/fold.cpp` computes them.
fn fold(op: &str, args: &[Tensor], ints: &[i64], float: f64) -> Result<Tensor, String> {
    let vector = |n: i64, value: f64| Tensor { shape: vec![n], data: vec![value; n as usize] };
    let as_column = |v: &Tensor| Tensor { shape: vec![v.shape[0], 1], data: v.data.clone() };
    match op {
        "matmul" => matmul(&args[0], &args[1]),
        "mv" => {
            let y = matmul(&args[0], &as_column(&args[1]))?;
            Ok(Tensor { shape: vec![y.shape[0]], data: y.data })
        }
        "add" => broadcast(&args[0], &args[1], |a, b| a + b),
        "sub" => broadcast(&args[0], &args[1], |a, b| a - b),
        "mul" => broadcast(&args[0], &args[1], |a, b| a * b),
        "times" => Ok(map(args[0].clone(), |v| v * float)),
        "scale_rows" => broadcast(&args[0], &as_column(&args[1]), |a, b| a * b),
        "scale_columns" => broadcast(&args[0], &args[1], |a, b| a * b),
        "rsqrt" => Ok(map(args[0].clone(), |v| 1.0 / (v + float).sqrt())),
        "cat0" => cat(args, 0),
        "cat1" => cat(args, 1),
        "columns" => Ok(columns(&args[0], ints[0] as usize, (ints[0] + ints[1]) as usize)),
        "transpose" => Ok(transpose(&args[0])),
        "fill" => Ok(vector(ints[0], float)),
        "broadcast" => Ok(vector(ints[0], args[0].data[0])),
        _ => Err(format!("fold {op}")),
    }
}

/// Both runs, compared: values within rounding, draws, and which results share
/// memory.
pub fn same(builder: &Builder, edits: &Edits) -> Result<(), String> {
    for training in [false, true] {
        let before = run(builder, training)?;
        let after = run_edits(builder, edits, training)?;
        if before.draws != after.draws {
            return Err(format!("{} draws became {}", before.draws, after.draws));
        }
        for (n, (a, b)) in before.outputs.iter().zip(&after.outputs).enumerate() {
            if a.shape != b.shape {
                return Err(format!("result {n}: {:?} became {:?}", a.shape, b.shape));
            }
            let largest = a.data.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            for (x, y) in a.data.iter().zip(&b.data) {
                let close = (x - y).abs() <= 1e-9 * largest || x.is_nan() && y.is_nan();
                if !close && x != y {
                    return Err(format!("result {n}: {x} became {y}"));
                }
            }
        }
        for i in 0..before.memory.len() {
            for j in 0..i {
                let (was, is) =
                    (before.memory[i] == before.memory[j], after.memory[i] == after.memory[j]);
                if was != is {
                    return Err(format!("results {j} and {i}: shared memory {was} became {is}"));
                }
            }
        }
    }
    Ok(())
}
