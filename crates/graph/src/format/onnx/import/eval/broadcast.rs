//! Operators that combine tensors value by value, stretching axes of length 1.

use super::{Array, Budget, Call, Data, Problem};

/// `Add`, `Sub`, `Mul`, `Div`, `Pow`, `Equal`.
pub(super) fn binary(call: &mut Call) -> Result<Array, Problem> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let op = call.node.op_type.as_str();
    let shape = common(&[&a.shape, &b.shape])?;
    call.budget.take(&shape)?;
    let data = match (&a.data, &b.data) {
        (Data::Floats(x), Data::Floats(y)) => {
            let f: fn(f32, f32) -> f32 = match op {
                "Add" => |x, y| x + y,
                "Sub" => |x, y| x - y,
                "Mul" => |x, y| x * y,
                "Div" => |x, y| x / y,
                "Pow" => power,
                _ => return Err("compares f32".into()),
            };
            Data::Floats(combine(&shape, (x, &a.shape), (y, &b.shape), f))
        }
        (Data::Ints(x), Data::Ints(y)) => {
            let f: fn(i64, i64) -> i64 = match op {
                "Add" => i64::wrapping_add,
                "Sub" => i64::wrapping_sub,
                "Mul" => i64::wrapping_mul,
                "Div" if y.contains(&0) => return Err("divides by 0".into()),
                "Div" => i64::wrapping_div,
                "Equal" => |x, y| i64::from(x == y),
                _ => return Err("raises whole numbers to a power".into()),
            };
            Data::Ints(combine(&shape, (x, &a.shape), (y, &b.shape), f))
        }
        (Data::Floats(x), Data::Ints(y)) if op == "Pow" => {
            let y: Vec<f32> = y.iter().map(|&v| v as f32).collect();
            Data::Floats(combine(&shape, (x, &a.shape), (&y, &b.shape), power))
        }
        _ => return Err("combines f32 and whole numbers".into()),
    };
    Ok(Array { shape, data })
}

fn power(x: f32, y: f32) -> f32 {
    if y == 2.0 { x * x } else { x.powf(y) }
}

/// `Where`.
pub(super) fn choose(call: &mut Call) -> Result<Array, Problem> {
    let (c, a, b) = (call.input(0)?, call.input(1)?, call.input(2)?);
    let shape = common(&[&c.shape, &a.shape, &b.shape])?;
    let (c, a, b) =
        (stretch(c, &shape, call.budget)?, stretch(a, &shape, call.budget)?, stretch(b, &shape, call.budget)?);
    let which = c.as_ints()?;
    let data = match (&a.data, &b.data) {
        (Data::Floats(x), Data::Floats(y)) => Data::Floats(pick(which, x, y)),
        (Data::Ints(x), Data::Ints(y)) => Data::Ints(pick(which, x, y)),
        _ => return Err("chooses between f32 and whole numbers".into()),
    };
    Ok(Array { shape, data })
}

fn pick<T: Copy>(which: &[i64], x: &[T], y: &[T]) -> Vec<T> {
    which.iter().zip(x.iter().zip(y)).map(|(&c, (&x, &y))| if c != 0 { x } else { y }).collect()
}

/// `Expand`.
pub(super) fn expand(call: &mut Call) -> Result<Array, Problem> {
    let x = call.input(0)?;
    let wanted = call.input(1)?.as_ints()?.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<Vec<_>>>();
    let wanted = wanted.ok_or_else(|| Problem::new("stretches to a negative size"))?;
    let shape = common(&[&x.shape, &wanted])?;
    stretch(x, &shape, call.budget)
}

fn stretch(x: &Array, shape: &[usize], budget: &mut Budget) -> Result<Array, Problem> {
    let len = budget.take(shape)?;
    let strides = strides(&x.shape, shape);
    let mut index = Odometer::new(shape, [&strides]);
    let mut next = || index.next()[0];
    let data = match &x.data {
        Data::Floats(v) => Data::Floats((0..len).map(|_| v[next()]).collect()),
        Data::Ints(v) => Data::Ints((0..len).map(|_| v[next()]).collect()),
    };
    Ok(Array { shape: shape.to_vec(), data })
}

/// The shape all of `shapes` stretch to.
fn common(shapes: &[&[usize]]) -> Result<Vec<usize>, Problem> {
    let axes = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut out = vec![1; axes];
    for shape in shapes {
        for (o, &d) in out[axes - shape.len()..].iter_mut().zip(*shape) {
            match (*o, d) {
                (1, d) => *o = d,
                (a, b) if a == b || b == 1 => {}
                _ => return Err(format!("combines shapes {shapes:?}").into()),
            }
        }
    }
    Ok(out)
}

/// Steps through an array of `shape` along the axes of `out`, 0 where it is stretched.
fn strides(shape: &[usize], out: &[usize]) -> Vec<usize> {
    let mut strides = vec![0; out.len()];
    let mut step = 1;
    for (stride, &d) in strides[out.len() - shape.len()..].iter_mut().zip(shape).rev() {
        if d != 1 {
            *stride = step;
        }
        step *= d;
    }
    strides
}

fn combine<A: Copy, B: Copy, T>(
    shape: &[usize],
    (x, xs): (&[A], &[usize]),
    (y, ys): (&[B], &[usize]),
    f: impl Fn(A, B) -> T,
) -> Vec<T> {
    if xs == ys {
        return x.iter().zip(y).map(|(&x, &y)| f(x, y)).collect();
    }
    let (xs, ys) = (strides(xs, shape), strides(ys, shape));
    let mut index = Odometer::new(shape, [&xs, &ys]);
    let len = shape.iter().product();
    (0..len)
        .map(|_| {
            let [i, j] = index.next();
            f(x[i], y[j])
        })
        .collect()
}

/// Walks `shape` row by row, keeping the places in K arrays of other strides.
pub(super) struct Odometer<'a, const K: usize> {
    shape: &'a [usize],
    strides: [&'a [usize]; K],
    count: Vec<usize>,
    at: [usize; K],
}

impl<'a, const K: usize> Odometer<'a, K> {
    pub(super) fn new(shape: &'a [usize], strides: [&'a Vec<usize>; K]) -> Self {
        Self { shape, strides: strides.map(Vec::as_slice), count: vec![0; shape.len()], at: [0; K] }
    }

    /// The places now; steps on.
    pub(super) fn next(&mut self) -> [usize; K] {
        let now = self.at;
        for axis in (0..self.shape.len()).rev() {
            self.count[axis] += 1;
            for k in 0..K {
                self.at[k] += self.strides[k][axis];
            }
            if self.count[axis] < self.shape[axis] {
                break;
            }
            self.count[axis] = 0;
            for k in 0..K {
                self.at[k] -= self.strides[k][axis] * self.shape[axis];
            }
        }
        now
    }
}
