//! Speed of the kernels on the shapes of yolov5n and yolov8n, against the peak of one core: `cargo bench -p prunella-kernels`.
//!
//! Arguments: instruction sets, such as `avx2`; all that the machine has without any. Each figure is the best of several runs, since other load only slows.
//! `RAYON_NUM_THREADS=1` compares with the peak of one core directly.

use std::hint::black_box;
use std::time::{Duration, Instant};

use graph::Act;
use kernels::{BnAct, ConvShape, Epilogue, Isa, Layout, Packed, Pool, View, ViewMut};
use rayon::prelude::*;

/// Kernel size, input channels, output channels, input height and width, stride.
type Row = (usize, usize, usize, usize, usize);

const ROWS: [Row; 22] = [
    (6, 3, 16, 320, 2),
    (3, 3, 16, 320, 2),
    (3, 16, 32, 160, 2),
    (3, 8, 8, 80, 1),
    (3, 12, 12, 40, 1),
    (3, 16, 16, 80, 1),
    (3, 32, 32, 80, 1),
    (3, 32, 32, 40, 1),
    (3, 64, 64, 80, 1),
    (3, 64, 64, 40, 1),
    (3, 64, 64, 20, 1),
    (3, 128, 64, 20, 1),
    (3, 64, 128, 40, 2),
    (3, 128, 128, 20, 1),
    (3, 128, 256, 20, 2),
    (3, 128, 128, 10, 1),
    (3, 256, 256, 10, 1),
    (3, 37, 45, 40, 1),
    (1, 32, 32, 80, 1),
    (1, 64, 64, 40, 1),
    (1, 128, 128, 20, 1),
    (1, 384, 256, 10, 1),
];
const DEPTHWISE: [Row; 3] = [(3, 64, 64, 80, 1), (3, 96, 96, 40, 1), (3, 96, 96, 80, 2)];
/// Channels, height and width of maps for batch norm and the like.
const MAPS: [(usize, usize); 5] = [(16, 160), (64, 80), (37, 80), (64, 40), (256, 10)];
const BATCH: usize = 8;

/// Best time of a call within a fifth of a second.
fn best(mut f: impl FnMut()) -> f64 {
    f();
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(200) {
        let at = Instant::now();
        f();
        best = best.min(at.elapsed().as_secs_f64());
    }
    best
}

fn fill(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect()
}

/// Multiply-adds between registers alone, GFLOP/s of one core; `None` where nobody wrote the loop for this instruction set.
fn peak(isa: Isa) -> Option<f64> {
    /// Times a loop of 12 independent chains: two units of latency 4 need 8.
    #[cfg(target_arch = "x86_64")]
    macro_rules! chains {
        ($features:literal, $lanes:literal, $set:ident, $fma:ident) => {{
            use std::arch::x86_64::*;
            #[target_feature(enable = $features)]
            fn chains(turns: usize) {
                let factor = $set(black_box(0.5));
                let mut sums = [factor; 12];
                for _ in 0..turns {
                    for sum in &mut sums {
                        *sum = $fma(*sum, factor, factor);
                    }
                }
                black_box(sums);
            }
            const TURNS: usize = 100_000;
            // SAFETY: `isa` is one that this machine has.
            let seconds = best(|| unsafe { chains(TURNS) });
            Some(2.0 * $lanes * 12.0 * TURNS as f64 / seconds * 1e-9)
        }};
    }
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => chains!("avx512f", 16.0, _mm512_set1_ps, _mm512_fmadd_ps),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => chains!("avx2,fma", 8.0, _mm256_set1_ps, _mm256_fmadd_ps),
        _ => None,
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let threads = rayon::current_num_threads();
    println!("memory: {:.0} GB/s, {threads} threads, read and written", bandwidth());
    for isa in Isa::available() {
        if !wanted.is_empty() && !wanted.iter().any(|name| name == isa.name()) {
            continue;
        }
        isa.scope(|| {
            let peak = peak(isa).map_or("unknown".to_owned(), |p| format!("{p:.0} GFLOP/s"));
            println!("{isa:?}, {threads} threads, peak of one core {peak}");
            println!("{:30} {:>9} {:>9} {:>9}   GFLOP/s", "convolution, batch 8", "forward", "dx", "dw");
            for row in ROWS {
                let name = if row.0 == 3 && row.4 == 1 { "" } else { "direct" };
                if name.is_empty() {
                    kernels::directly(|| convolution(row, 1, "direct"));
                }
                convolution(row, 1, name);
            }
            println!("{:28} {:>9} {:>9} {:>9}   GFLOP/s", "depthwise, batch 8", "forward", "dx", "dw");
            DEPTHWISE.iter().for_each(|row| convolution(*row, row.1, ""));
            println!(
                "{:28} {:>9} {:>9} {:>9}   GB/s read and written",
                "others, batch 8", "stats", "forward", "backward"
            );
            MAPS.iter().for_each(|map| others(*map));
        });
    }
}

/// What all threads together copy between arrays far larger than any cache, GB/s read and written: the most that work without
/// arithmetic can reach.
fn bandwidth() -> f64 {
    const FLOATS: usize = 1 << 26;
    const CHUNK: usize = 1 << 14;
    let (from, mut to) = (vec![1.0f32; FLOATS], vec![0.0f32; FLOATS]);
    let seconds = best(|| {
        to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut to);
    });
    2.0 * 4.0 * FLOATS as f64 / seconds * 1e-9
}

/// Batch norm with SiLU and, on small maps, max pooling and upsampling, against the bytes they must move.
fn others((c, size): (usize, usize)) {
    let l = Layout::dense(BATCH, size, size, c);
    let (x, dy, mut y) = (fill(l.end()), fill(l.end()), vec![0.0; l.end()]);
    let (ones, zeros, mut dgamma, mut dbeta) = (vec![1.0; c], vec![0.0; c], vec![0.0; c], vec![0.0; c]);
    let bn = BnAct { mean: &zeros, inv_std: &ones, gamma: &ones, beta: &zeros, act: Act::Silu };
    let (x, dy) = (View::new(&x, l), View::new(&dy, l));
    let gigabytes = l.end() as f64 * 4e-9;
    let stats = best(|| drop(black_box(kernels::batch_stats(x))));
    let forward = best(|| kernels::bn_act_forward(x, &bn, ViewMut::new(&mut y, l)));
    let backward = best(|| kernels::bn_act_backward(x, dy, &bn, ViewMut::new(&mut y, l), &mut dgamma, &mut dbeta));
    let name = format!("batch norm, SiLU, {c} @{size}");
    println!(
        "{name:28} {:9.1} {:9.1} {:9.1}",
        gigabytes / stats,
        2.0 * gigabytes / forward,
        5.0 * gigabytes / backward
    );

    if size > 40 {
        return;
    }
    let pool = Pool { kernel: 5, stride: 1, pad: [2, 2] };
    let forward = best(|| kernels::max_pool_forward(pool, x, ViewMut::new(&mut y, l)));
    let backward = best(|| kernels::max_pool_backward(pool, x, dy, ViewMut::new(&mut y, l)));
    let name = format!("max pool 5x5, {c} @{size}");
    println!("{name:28} {:>9} {:9.1} {:9.1}", "", 2.0 * gigabytes / forward, 4.0 * gigabytes / backward);

    let large = Layout { h: 2 * l.h, w: 2 * l.w, ..l };
    let mut big = fill(large.end());
    let forward = best(|| kernels::upsample_forward(2, x, ViewMut::new(&mut big, large)));
    let backward = best(|| kernels::upsample_backward(2, View::new(&big, large), ViewMut::new(&mut y, l), false));
    let name = format!("upsample, {c} @{size}");
    println!("{name:28} {:>9} {:9.1} {:9.1}", "", 5.0 * gigabytes / forward, 5.0 * gigabytes / backward);
}

fn convolution((k, ci, co, size, stride): Row, groups: usize, how: &str) {
    let pad = if k == 6 { 2 } else { k / 2 };
    let shape = ConvShape { ci, co, kernel: [k, k], stride: [stride; 2], pad: [pad; 2], groups };
    let from = Layout::dense(BATCH, size, size, ci);
    let (oh, ow) = shape.output(from);
    let to = Layout::dense(BATCH, oh, ow, co);
    let (mut x, mut y, mut w) = (fill(from.end()), fill(to.end()), fill(co * ci / groups * k * k));
    let flops = 2.0 * (to.pixels() * w.len()) as f64 * 1e-9;
    let epilogue = Epilogue { bias: None, act: Act::Identity };
    let forward = best(|| {
        let packed = Packed::new(&shape, &w);
        kernels::conv_forward(&shape, View::new(&x, from), &packed, epilogue, ViewMut::new(&mut y, to));
    });
    let dx = best(|| kernels::conv_backward_input(&shape, View::new(&y, to), &w, ViewMut::new(&mut x, from), false));
    let dw = best(|| kernels::conv_backward_weight(&shape, View::new(&x, from), View::new(&y, to), &mut w));
    let name = format!("{k}x{k} {ci} -> {co} @{size} /{stride} {how}");
    println!("{name:30} {:9.0} {:9.0} {:9.0}", flops / forward, flops / dx, flops / dw);
}
