//! Maps and weights in eight bits as ONNX: `QuantizeLinear` and `DequantizeLinear` where a value is rounded.

use super::proto::AttributeProto;
use super::writer::{Writer, value_name};
use crate::Conv;
use crate::quant::{Affine, GATE, QuantizedConv};

/// `x` rounded to bytes and back; `name` is the value's own name.
pub fn rounded(w: &mut Writer, name: &str, x: &str, affine: Affine) -> String {
    let scale = w.floats(&format!("{name}.scale"), &[], &[affine.scale]);
    let zero = w.byte(&format!("{name}.zero"), affine.zero);
    let bytes = w.node("QuantizeLinear", &format!("{name}.quantized"), &[x, &scale, &zero], vec![]);
    w.node("DequantizeLinear", &format!("{name}.dequantized"), &[&bytes, &scale, &zero], vec![])
}

/// Convolution `name` of `x` with weights, and where the output becomes bytes a bias, of whole numbers.
pub fn write_conv(w: &mut Writer, name: &str, conv: &Conv, bytes: &QuantizedConv, x: &str) -> String {
    let filters = &bytes.filters;
    let first_axis = || vec![AttributeProto::int("axis", 0)];
    let whole = w.signed_bytes(&format!("{name}.weight"), &conv.weight.shape, &filters.values);
    let scale = w.floats(&format!("{name}.weight.scale"), &[filters.scales.len()], &filters.scales);
    let value = value_name(name);
    let weight = w.node("DequantizeLinear", &format!("{value}.weight"), &[&whole, &scale], first_axis());
    let bias = match (&bytes.bias, &conv.bias) {
        (Some(bias), _) => {
            let whole = w.words(&format!("{name}.bias"), bias);
            let scale = w.floats(&format!("{name}.bias.scale"), &[bias.len()], &bytes.bias_scales);
            Some(w.node("DequantizeLinear", &format!("{value}.bias"), &[&whole, &scale], first_axis()))
        }
        (None, Some(bias)) => Some(w.floats(&format!("{name}.bias"), &[bias.len()], bias)),
        (None, None) => None,
    };
    w.conv(name, conv, &[Some(x), Some(&weight), bias.as_deref()])
}

/// `x * sigmoid(x)`, the sigmoid in bytes too, so that runtimes look it up.
pub fn write_silu(w: &mut Writer, value: &str, x: &str) -> String {
    let name = format!("{value}.sigmoid");
    let gate = w.node("Sigmoid", &name, &[x], vec![]);
    let gate = rounded(w, &name, &gate, GATE);
    w.node("Mul", value, &[x, &gate], vec![])
}
