//! The classes and functions a checkpoint may name.

/// Whole modules of which any class may be named. Naming runs nothing; what is not understood later is refused there.
const MODULES: [&str; 6] =
    ["torch.nn.modules", "torch.nn.parameter", "models", "yolov5.models", "ultralytics", "utils"];

/// Single names in other modules.
const NAMES: &[(&str, &[&str])] = &[
    ("collections", &["OrderedDict", "defaultdict"]),
    ("__builtin__", BUILTINS),
    ("builtins", BUILTINS),
    ("_codecs", &["encode"]),
    ("argparse", &["Namespace"]),
    ("types", &["SimpleNamespace"]),
    ("datetime", &["datetime", "date", "timedelta"]),
    ("pathlib", &["Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"]),
    ("numpy", &["dtype", "ndarray", "float16", "float32", "float64", "int32", "int64", "bool_"]),
    ("numpy.core.multiarray", &["scalar", "_reconstruct"]),
    ("numpy._core.multiarray", &["scalar", "_reconstruct"]),
    ("torch._utils", &["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"]),
];

const BUILTINS: &[&str] =
    &["set", "frozenset", "list", "dict", "tuple", "int", "float", "bool", "str", "slice", "range"];

/// `torch` itself: storages, types and two plain records.
const TORCH: &[&str] = &[
    "Size", "device", "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool",
];

/// Whether a file may name `module.name`.
pub(super) fn allowed(module: &str, name: &str) -> bool {
    let inside =
        |parent: &&str| module.strip_prefix(*parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if name.contains('.') {
        return false; // a path through attributes reaches anything the module imports
    }
    if module == "torch" {
        return TORCH.contains(&name) || name.ends_with("Storage");
    }
    MODULES.iter().any(inside) || NAMES.iter().any(|(m, names)| *m == module && names.contains(&name))
}
