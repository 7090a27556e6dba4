//! The embedded ONNX runtime: running exported models, checking them against our own forward, timing them.
