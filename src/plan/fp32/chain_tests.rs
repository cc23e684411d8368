//! Chains are run in fp64 on a small machine, images as plain matrices.

use std::collections::HashMap;

use super::*;

/// Memory in elements of four bytes, and images by their place.
#[derive(Default)]
struct Machine {
    memory: HashMap<usize, f64>,
    images: HashMap<usize, Vec<Vec<f64>>>,
    copies: HashMap<usize, f64>,
    next: usize,
}

impl Machine {
    fn put(&mut self, rows: i64, cols: i64, seed: i64) -> Matrix {
        self.next += 1 << 20;
        for i in 0..rows * cols {
            self.memory.insert(self.next + 4 * i as usize, ((i * 7 + seed) % 11 - 5) as f64);
        }
        Matrix::dense(self.next, rows, cols)
    }

    fn room(&mut self) -> usize {
        self.next += 1 << 20;
        self.next
    }

    fn read(&self, m: Matrix) -> Vec<Vec<f64>> {
        read(&self.memory, m)
    }

    fn run(&mut self, chain: &Chain) {
        for job in &chain.jobs {
            match *job {
                Job::Pad(pad) => self.copy(pad),
                Job::Pack(pack) => {
                    self.images.insert(pack.image, self.read(pack.right));
                }
                Job::Gemm(gemm) => self.multiply(gemm),
                Job::ReluBackward(relu) => self.mask(relu),
            }
        }
    }

    fn copy(&mut self, pad: Pad) {
        assert!(is_aligned(alignment(pad.to), pad.ld, 4));
        for (r, row) in self.read(pad.from).iter().enumerate() {
            for (c, value) in row.iter().enumerate() {
                self.copies.insert(pad.to + 4 * (r * pad.ld as usize + c), *value);
            }
        }
    }

    fn multiply(&mut self, gemm: Gemm) {
        assert!(is_aligned(alignment(gemm.left.data), gemm.ld, 4));
        let memory = if gemm.padded { &self.copies } else { &self.memory };
        let left = read(memory, gemm.left);
        let right = self.images[&gemm.image].clone();
        assert_eq!(right.len() as i64, gemm.left.cols, "the image of another matrix");
        let mut d = vec![];
        for (r, row) in left.iter().enumerate() {
            let bias = gemm.bias.map_or(0.0, |bias| self.memory[&(bias + 4 * r)]);
            let value = |c: usize| {
                let sum: f64 = row.iter().zip(&right).map(|(x, line)| x * line[c]).sum();
                if gemm.relu {
                    (sum + bias).max(0.0)
                } else {
                    sum + bias
                }
            };
            d.push((0..gemm.n as usize).map(value).collect::<Vec<f64>>());
        }
        if gemm.output != 0 {
            for (r, row) in d.iter().enumerate() {
                for (c, value) in row.iter().enumerate() {
                    self.memory.insert(gemm.output + 4 * (c * d.len() + r), *value);
                }
            }
        }
        if let Some(image) = gemm.image_out {
            assert_ne!(image, gemm.image, "it would overwrite what it reads");
            self.images.insert(image, d);
        }
    }

    fn mask(&mut self, relu: ReluBackward) {
        let mut z = self.read(relu.grad);
        let output = Matrix::dense(relu.output, relu.grad.rows, relu.grad.cols);
        for (r, row) in z.iter_mut().enumerate() {
            for (c, value) in row.iter_mut().enumerate() {
                if relu.output != 0 && at(&self.memory, output, r as i64, c as i64) <= 0.0 {
                    *value = 0.0;
                }
            }
        }
        if relu.bias_grad != 0 {
            for c in 0..z[0].len() {
                let sum = z.iter().map(|row| row[c]).sum();
                self.memory.insert(relu.bias_grad + 4 * c, sum);
            }
        }
        if let Some(image) = relu.over_cols {
            self.images.insert(image, transposed(&z));
        }
        if let Some(image) = relu.over_rows {
            self.images.insert(image, z);
        }
    }
}

fn at(memory: &HashMap<usize, f64>, m: Matrix, r: i64, c: i64) -> f64 {
    memory[&(m.data + 4 * (r * m.row_stride + c * m.col_stride) as usize)]
}

fn read(memory: &HashMap<usize, f64>, m: Matrix) -> Vec<Vec<f64>> {
    (0..m.rows).map(|r| (0..m.cols).map(|c| at(memory, m, r, c)).collect()).collect()
}

fn transposed(a: &[Vec<f64>]) -> Vec<Vec<f64>> {
    (0..a[0].len()).map(|c| a.iter().map(|row| row[c]).collect()).collect()
}

fn times(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let dot = |row: &[f64], c: usize| row.iter().zip(b).map(|(x, line)| x * line[c]).sum();
    a.iter().map(|row| (0..b[0].len()).map(|c| dot(row, c)).collect()).collect()
}

const ROWS: i64 = 5;
/// The second of rows that are copied first, all but one.
const WIDTHS: [[i64; 5]; 2] = [[8, 4, 12, 4, 3], [7, 5, 12, 1, 3]];

struct Model {
    machine: Machine,
    input: Matrix,
    layers: Vec<Layer>,
    wants: Vec<Vec<Vec<f64>>>,
}

fn model(widths: [i64; 5], keep: bool) -> Model {
    let mut machine = Machine::default();
    let input = machine.put(ROWS, widths[0], 0);
    let mut h = machine.read(input);
    let (mut layers, mut wants) = (vec![], vec![]);
    for (i, pair) in widths.windows(2).enumerate() {
        let last = i + 2 == widths.len();
        let weight = machine.put(pair[1], pair[0], i as i64 + 1);
        let bias = machine.put(1, pair[1], 3);
        let output = if keep || last { machine.room() } else { 0 };
        layers.push(Layer { weight, bias: Some(bias.data), output, relu: !last });
        h = times(&h, &transposed(&machine.read(weight)));
        let bias = machine.read(bias);
        for row in &mut h {
            for (value, b) in row.iter_mut().zip(&bias[0]) {
                *value = if last { *value + b } else { (*value + b).max(0.0) };
            }
        }
        wants.push(h.clone());
    }
    Model { machine, input, layers, wants }
}

#[test]
fn a_chain_computes_its_layers() {
    for (widths, keep) in WIDTHS.into_iter().flat_map(|w| [(w, false), (w, true)]) {
        let Model { mut machine, input, layers, wants } = model(widths, keep);
        machine.run(&forward(input, &layers, 132).unwrap());
        for (layer, want) in layers.iter().zip(&wants).filter(|(layer, _)| layer.output != 0) {
            let got = Matrix::dense(layer.output, ROWS, layer.weight.rows);
            assert_eq!(&machine.read(got), want);
        }
    }
}

#[test]
fn a_chain_goes_back_through_its_layers() {
    for widths in WIDTHS {
        goes_back(widths);
    }
}

fn goes_back(widths: [i64; 5]) {
    let Model { mut machine, input, layers, wants } = model(widths, true);
    machine.run(&forward(input, &layers, 132).unwrap());
    let grad_output = machine.put(widths[4], ROWS, 2).transpose();
    let on_the_way = machine.room();
    let mut back = vec![];
    for i in (0..layers.len()).rev() {
        let front = i.checked_sub(1).map(|j| Matrix::dense(layers[j].output, ROWS, widths[i]));
        back.push(LayerBackward {
            input: front.unwrap_or(input),
            weight: layers[i].weight,
            output: if layers[i].relu { layers[i].output } else { 0 },
            masked: 0,
            grad_input: if i == 0 { machine.room() } else { on_the_way },
            grad_weight: machine.room(),
            grad_bias: machine.room(),
        });
    }
    machine.run(&backward(grad_output, &back, 132).unwrap());

    let mut grad = machine.read(grad_output);
    for (i, layer) in (0..layers.len()).rev().zip(&back) {
        if layers[i].relu {
            for (row, outputs) in grad.iter_mut().zip(&wants[i]) {
                for (value, &output) in row.iter_mut().zip(outputs) {
                    *value = if output <= 0.0 { 0.0 } else { *value };
                }
            }
        }
        let x = if i == 0 { machine.read(input) } else { wants[i - 1].clone() };
        let (n, k) = (widths[i + 1], widths[i]);
        let weight_grad = Matrix::dense(layer.grad_weight, n, k);
        assert_eq!(machine.read(weight_grad), times(&transposed(&grad), &x));
        let sums: Vec<f64> = transposed(&grad).iter().map(|column| column.iter().sum()).collect();
        assert_eq!(machine.read(Matrix::dense(layer.grad_bias, 1, n)), [sums]);
        grad = times(&grad, &machine.read(layers[i].weight));
    }
    assert_eq!(machine.read(Matrix::dense(back[3].grad_input, ROWS, widths[0])), grad);
}

#[test]
fn copies_come_first_and_only_where_rows_are_not_aligned() {
    let pads = |chain: &Chain| {
        let first = chain.jobs.iter().take_while(|job| matches!(job, Job::Pad(_))).count();
        assert!(!matches!(chain.jobs[first], Job::Gemm(_)), "it fetches before it waits");
        let rest = &chain.jobs[first..];
        assert!(rest.iter().all(|job| !matches!(job, Job::Pad(_))));
        first
    };
    for (widths, wanted) in WIDTHS.into_iter().zip([0, 3]) {
        let Model { input, layers, .. } = model(widths, false);
        assert_eq!(pads(&forward(input, &layers, 132).unwrap()), wanted, "{widths:?}");
    }
    // Rows of 8 from the middle of a storage.
    let weight = Matrix::dense((1 << 20) + 4, 12, 8);
    let layer = Layer { weight, bias: None, output: 1 << 22, relu: false };
    let chain = forward(Matrix::dense(1 << 21, ROWS, 8), &[layer], 132).unwrap();
    assert_eq!(pads(&chain), 1);
    let back = LayerBackward {
        input: Matrix::dense(1 << 21, ROWS, 8),
        weight,
        output: 1 << 22,
        masked: 0,
        grad_input: 1 << 23,
        grad_weight: 1 << 24,
        grad_bias: 0,
    };
    let chain = backward(Matrix::dense(1 << 25, ROWS, 12), &[back], 132).unwrap();
    assert_eq!(pads(&chain), 1);
}

#[test]
fn what_nobody_wants_is_not_computed() {
    let (rows, n, k) = (256, 64, 128);
    let layer = LayerBackward {
        input: Matrix::dense(1 << 20, rows, k),
        weight: Matrix::dense(1 << 21, n, k),
        output: 1 << 22,
        masked: 0,
        grad_input: 0,
        grad_weight: 0,
        grad_bias: 1 << 23,
    };
    let chain = |layer| backward(Matrix::dense(1 << 24, rows, n), &[layer], 132).unwrap();
    assert!(matches!(chain(layer).jobs[..], [Job::ReluBackward(r)] if r.over_cols.is_none()));
    let weight = chain(LayerBackward { grad_weight: 1 << 25, ..layer });
    let [Job::ReluBackward(relu), Job::Gemm(gemm)] = weight.jobs[..] else { panic!("{weight:?}") };
    assert_eq!((relu.over_cols, relu.over_rows), (None, Some(gemm.image)));
}

#[test]
fn places_do_not_overlap() {
    let Model { input, layers, .. } = model(WIDTHS[1], false);
    let chain = forward(input, &layers, 132).unwrap();
    let mut places: Vec<(usize, usize)> = vec![(chain.partial, chain.scratch_bytes)];
    for job in &chain.jobs {
        match job {
            Job::Gemm(gemm) => {
                places.push((gemm.image, gemm.image + image_bytes(gemm.left.cols, gemm.n)));
            }
            Job::Pad(pad) => {
                places.push((pad.to, pad.to + (pad.from.rows * pad.ld) as usize * 4));
            }
            _ => {}
        }
    }
    places.sort_unstable();
    places.dedup();
    for pair in places.windows(2) {
        assert!(pair[0].1 <= pair[1].0 || pair[0].0 == pair[1].0, "{places:?}");
    }
    assert!(places.iter().all(|place| place.1 <= chain.scratch_bytes));
}

#[test]
fn the_mask_covers_every_row_once() {
    for rows in [1, 128, 129, 1024, 65_536] {
        for cols in [1, 10, 1000, 4096, 1 << 18] {
            let ((strips, splits), per_split) = relu_grid(rows, cols, 132);
            assert!(strips * 32 >= cols && (strips - 1) * 32 < cols);
            assert!(splits * per_split >= padded(rows) && per_split % 128 == 0);
            assert!((splits - 1) * per_split < padded(rows), "an empty split");
            assert!(splits == 1 || strips <= TICKETS);
        }
    }
}
