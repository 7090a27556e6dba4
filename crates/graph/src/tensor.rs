//! A dense f32 array with a shape: what weights are stored in.

/// Row-major f32 array. Convolution weights are (O, I / groups, KH, KW); vectors have one axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f32>,
}

impl Tensor {
    /// Wraps `data`; panics where its length is not the product of `shape` (a programming error).
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f32>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "tensor of shape {shape:?} got {} values", data.len());
        Self { shape, data }
    }

    /// All zeros.
    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let len = shape.iter().product();
        Self { shape, data: vec![0.0; len] }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// True where there is no value.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The part that belongs to index `i` of the first axis (one output filter of a convolution).
    pub fn outer(&self, i: usize) -> &[f32] {
        let step = self.data.len() / self.shape[0];
        &self.data[i * step..(i + 1) * step]
    }

    /// Keeps `index` along `axis`, in the order given.
    pub fn select(&self, axis: usize, index: &[usize]) -> Self {
        let inner: usize = self.shape[axis + 1..].iter().product();
        let outer: usize = self.shape[..axis].iter().product();
        let dim = self.shape[axis];
        let mut data = Vec::with_capacity(outer * index.len() * inner);
        for o in 0..outer {
            for &i in index {
                let at = (o * dim + i) * inner;
                data.extend_from_slice(&self.data[at..at + inner]);
            }
        }
        let mut shape = self.shape.clone();
        shape[axis] = index.len();
        Self { shape, data }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn select_takes_rows_and_columns() {
        let t = Tensor::new([2, 3], vec![0., 1., 2., 3., 4., 5.]);
        assert_eq!(t.select(1, &[2, 0]), Tensor::new([2, 2], vec![2., 0., 5., 3.]));
        assert_eq!(t.select(0, &[1]), Tensor::new([1, 3], vec![3., 4., 5.]));
    }
}
