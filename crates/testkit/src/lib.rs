//! What tests of several rooms share: where the test material is, and reading the goldens in it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use graph::Tensor;

/// The folder of test material: `PRUNELLA_SHARED`, or `../shared` beside the checkout.
///
/// Returns `None`, after printing why, where there is none; panics instead under CI, which must not skip.
pub fn shared() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let dir = std::env::var_os("PRUNELLA_SHARED").map_or(beside, PathBuf::from);
    if dir.join("README.md").is_file() {
        return Some(dir);
    }
    assert!(std::env::var_os("CI").is_none(), "test material is missing at {}: set PRUNELLA_SHARED", dir.display());
    println!("skipped: no test material at {} (set PRUNELLA_SHARED)", dir.display());
    None
}

/// Reads a safetensors file of f32 and u8 tensors; u8 becomes its value as f32 (0..255). Panics on anything else.
pub fn tensors(path: &Path) -> HashMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let convert = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
        let data = match view.dtype() {
            safetensors::Dtype::U8 => view.data().iter().map(|&b| f32::from(b)).collect(),
            safetensors::Dtype::F32 => {
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            other => panic!("{}: `{name}` is {other:?}", path.display()),
        };
        (name, Tensor::new(view.shape().to_vec(), data))
    };
    file.tensors().into_iter().map(convert).collect()
}

/// Largest absolute difference of two slices of one length.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}
