//! The command line from outside: exit codes, what goes to stdout, what goes to stderr, and no file where it failed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a command printed, with `{dir}` for the folder it ran in, and how it ended.
#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `prunella` in `dir`; an argument `{shared}/...` names test material.
fn prunella(dir: &Path, args: &str) -> Ran {
    let shared = testkit::shared().map(|s| s.canonicalize().expect("it is there").display().to_string());
    let args = args.split(' ').map(|a| a.replace("{shared}", shared.as_deref().unwrap_or("{shared}")));
    let mut command = Command::new(env!("CARGO_BIN_EXE_prunella"));
    let Output { status, stdout, stderr } =
        command.args(args).current_dir(dir).env("NO_COLOR", "1").output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8").replace(&dir.display().to_string(), "{dir}");
    Ran { code: status.code().expect("no signal"), stdout: text(stdout), stderr: text(stderr) }
}

/// A command that has to fail, and what it has to say.
#[derive(Debug)]
struct Case {
    args: &'static str,
    code: i32,
    stderr: &'static str,
}

/// Runs every case in `dir` and reports all that differ. A failure says nothing on stdout and leaves no new file.
fn check(dir: &Path, cases: &[Case]) {
    let before = files(dir);
    let mut wrong = vec![];
    for case in cases {
        let ran = prunella(dir, case.args);
        if ran.code != case.code || ran.stderr != case.stderr || !ran.stdout.is_empty() {
            wrong.push(format!("{case:#?}\n  {ran:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert_eq!(files(dir), before, "a command that failed left files behind");
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        }
        found.push(path);
    }
    found.sort();
    found
}

/// A folder with a dataset of one grey training image, and a validation split without images.
fn dataset() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let at = |path: &str| dir.path().join(path);
    for folder in ["ds/images/train", "ds/images/val", "ds/labels/train", "empty"] {
        fs::create_dir_all(at(folder)).expect("writable");
    }
    fs::write(at("ds/data.yaml"), "train: images/train\nval: images/val\nnames: [a, b]\n").expect("writable");
    image::RgbImage::from_pixel(64, 48, image::Rgb([114; 3])).save(at("ds/images/train/a.png")).expect("writable");
    fs::write(at("ds/labels/train/a.txt"), "0 0.5 0.5 0.2 0.2\n").expect("writable");
    dir
}

#[test]
fn files_that_are_no_detector_are_named_with_a_hint() {
    let dir = dataset();
    let at = |path: &str| dir.path().join(path);
    fs::write(at("model.xyz"), "").expect("writable");
    fs::write(at("text.onnx"), "nonsense").expect("writable");
    fs::write(at("odd.cfg"), "[net]\nwidth=32\nheight=32\nchannels=3\n[warp]\nx=1\n").expect("writable");
    fs::write(at("odd.weights"), [0; 20]).expect("writable");
    let cases = [
        Case {
            args: "info missing.pt",
            code: 1,
            stderr: "error: cannot read `missing.pt`: No such file or directory (os error 2)\n\
                     hint: check the path; is it spelt right, does its folder exist?\n",
        },
        Case {
            args: "info model.xyz",
            code: 1,
            stderr: "error: `model.xyz`: no detector format has this extension\nhint: known are .pt (YOLOv5 to YOLO26), \
                     .onnx, .cfg with .weights (Darknet) and .safetensors (Prunella)\n",
        },
        Case {
            args: "info text.onnx",
            code: 1,
            stderr: "error: `text.onnx`: is no readable ONNX model: failed to decode Protobuf message: invalid wire type \
                     value: 6\nhint: the file is damaged or truncated; copy it again or repeat the export\n",
        },
        Case {
            args: "val --model text.onnx --data ds --split train",
            code: 1,
            stderr: "error: `text.onnx`: is no readable ONNX model: failed to decode Protobuf message: invalid wire type \
                     value: 6\nhint: the file is damaged or truncated; copy it again or repeat the export\n",
        },
    ];
    check(dir.path(), &cases);
    let odd = prunella(dir.path(), "info odd.cfg");
    assert!(odd.code == 1 && odd.stderr.contains("`odd.cfg`") && odd.stderr.contains("warp"), "{odd:?}");
}

#[test]
fn arguments_that_make_no_sense_are_refused_before_any_work() {
    let dir = dataset();
    let cases = [
        Case {
            args: "prune --model m.pt --out x.safetensors",
            code: 2,
            stderr: "error: no budget was given\nhint: say how much to keep, such as `--macs 0.5`\n",
        },
        Case {
            args: "compress --data ds --macs 0.5",
            code: 2,
            stderr: "error: `--model` is missing\nhint: give it, or a `--recipe` that has it\n",
        },
        Case {
            args: "prune --model m.pt --macs 50 --dry-run",
            code: 2,
            stderr: "error: invalid value '50' for '--macs <SHARE>': not a share above 0 and at most 1, such as 0.5\n\n\
                     For more information, try '--help'.\n",
        },
        Case {
            args: "val --detections found.json --data ds/data.yaml",
            code: 2,
            stderr: "error: `ds/data.yaml` is no COCO JSON\nhint: with `--detections`, `--data` is the instances JSON the \
                     file belongs to\n",
        },
    ];
    check(dir.path(), &cases);
}

#[test]
fn options_that_would_do_nothing_are_refused() {
    let dir = dataset();
    for option in ["--conf 0.5", "--iou 0.5", "--imgsz 64", "--batch 2", "--split train", "--images x"] {
        let ran = prunella(dir.path(), &format!("val --detections found.json --data ds/truth.json {option}"));
        assert!(ran.code == 2 && ran.stderr.contains("cannot be used with"), "{option}: {ran:?}");
    }
}

/// The same folder with `new.safetensors`, an untrained detector of its classes.
fn detector() -> tempfile::TempDir {
    let dir = dataset();
    common::done(dir.path(), "-q new yolov5n --data ds --imgsz 64 --out new.safetensors");
    dir
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let Ok(full) = fs::File::create("/dev/full") else { return };
    let dir = dataset();
    let mut command = Command::new(env!("CARGO_BIN_EXE_prunella"));
    command.args(["data", "check", "ds"]).current_dir(dir.path()).env("NO_COLOR", "1").stdout(full);
    let Output { status, stderr, .. } = command.output().expect("the binary runs");
    let stderr = String::from_utf8(stderr).expect("UTF-8");
    assert!(status.code() == Some(1) && stderr.starts_with("error: cannot write `stdout`"), "{stderr}");
}

#[test]
fn what_is_given_is_never_written_over() {
    let dir = detector();
    fs::copy(dir.path().join("ds/images/train/a.png"), dir.path().join("a.png")).expect("writable");
    let itself = "error: `new.safetensors` is the model itself\nhint: give another file with `--out`\n";
    let place =
        "error: `.` is where `a.png` lies, which would be written over\nhint: give another folder with `--out`\n";
    let folder = "error: cannot write `no/x.safetensors`: No such file or directory (os error 2)\n\
                  hint: check the path; is it spelt right, does its folder exist?\n";
    let name = "error: `x.onnx` is no name the file could be loaded by\n\
                hint: give `--out` a name that ends in .safetensors; `prunella export` writes others\n";
    let cases = [
        Case { args: "prune --model new.safetensors --macs 0.5 --out new.safetensors", code: 2, stderr: itself },
        Case { args: "prune --model new.safetensors --macs 0.5 --out no/x.safetensors", code: 1, stderr: folder },
        Case { args: "prune --model new.safetensors --macs 0.5 --out x.onnx", code: 2, stderr: name },
        Case { args: "export --model new.safetensors --out new.safetensors", code: 2, stderr: itself },
        Case { args: "predict --model new.safetensors a.png --out .", code: 2, stderr: place },
    ];
    check(dir.path(), &cases);
    let same = "predict --model new.safetensors ds/images/train --out ds/images/../images/train";
    assert_eq!(prunella(dir.path(), same).code, 2);
}

#[test]
fn images_that_cannot_be_read_are_left_out_and_labels_kept_apart() {
    let dir = detector();
    let at = |path: &str| dir.path().join(path);
    let picture = image::open(at("ds/images/train/a.png")).expect("an image");
    picture.save(at("empty/a.jpg")).expect("writable");
    picture.save(at("empty/a.png")).expect("writable");
    fs::write(at("empty/b.png"), "no image").expect("writable");
    let ran = prunella(dir.path(), "predict --model new.safetensors empty --json --save-txt --out seen");
    assert!(ran.code == 1 && ran.stderr.contains("warning: cannot decode image `empty/b.png`"), "{ran:?}");
    assert!(ran.stderr.contains("\nerror: 1 of 3 images cannot be read, first `empty/b.png`\nhint: "), "{ran:?}");
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let images: Vec<_> = found.as_array().expect("images").iter().map(|i| i["image"].as_str()).collect();
    assert_eq!(images, [Some("empty/a.jpg"), Some("empty/a.png")]);
    for file in ["a.jpg", "a.txt", "a-2.png", "a-2.txt"] {
        assert!(at("seen").join(file).is_file(), "{file}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_name_that_is_no_text_is_told_as_far_as_it_is() {
    use std::os::unix::ffi::OsStrExt;
    let dir = detector();
    let name = std::ffi::OsStr::from_bytes(b"a\xff.png");
    fs::copy(dir.path().join("ds/images/train/a.png"), dir.path().join("empty").join(name)).expect("writable");
    let ran = prunella(dir.path(), "-q predict --model new.safetensors empty --json --out seen");
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    assert_eq!((ran.code, &found[0]["image"]), (0, &"empty/a\u{fffd}.png".into()));
}

#[test]
fn a_split_that_stands_in_for_another_is_named() {
    let dir = detector();
    fs::write(dir.path().join("ds/data.yaml"), "train: images/train\nnames: [a, b]\n").expect("writable");
    fs::write(dir.path().join("ds/labels/train/a.txt"), "0 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.2 0.2\n").expect("writable");
    let ran = prunella(dir.path(), "val --model new.safetensors --data ds --json");
    let told: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
    assert_eq!((&told["split"], &told["skipped"]), (&"train".into(), &1.into()));
    assert!(ran.stderr.contains("warning: `ds` has no split `val`: mAP is measured on `train`"), "{ran:?}");
    assert!(ran.stderr.contains("warning: 1 boxes of `train` are skipped"), "{ran:?}");
    let named = prunella(dir.path(), "val --model new.safetensors --data ds --split train");
    assert!(named.code == 0 && !named.stderr.contains("no split"), "{named:?}");
    let doctor = prunella(dir.path(), "data check ds");
    assert!(doctor.code == 3 && doctor.stdout.contains("there is no split to judge by: 1\n"), "{doctor:?}");
}

#[test]
fn missing_images_are_told_of_the_split_that_is_used() {
    let dir = detector();
    let at = |path: &str| dir.path().join(path);
    fs::write(at("ds/list.txt"), "images/train/a.png\nimages/train/b.png\nimages/train/c.png\n").expect("writable");
    fs::write(at("ds/data.yaml"), "train: images/val\nval: list.txt\nnames: [a, b]\n").expect("writable");
    let told = "warning: 2 of 3 images of `val` are missing, such as `ds/images/train/b.png`; `prunella data check` lists them\n";
    let ran = prunella(dir.path(), "val --model new.safetensors --data ds");
    assert!(ran.code == 0 && ran.stderr.contains(told), "{ran:?}");
    // What is wrong with a split that is not looked at does not matter.
    fs::write(at("ds/images/val/x.png"), "no image").expect("writable");
    assert_eq!(prunella(dir.path(), "val --model new.safetensors --data ds").code, 0);
    let ran = prunella(dir.path(), "prune --model new.safetensors --data ds --macs 0.9 --dry-run");
    assert!(ran.code == 1 && ran.stderr.contains("ds/images/val/x.png"), "{ran:?}");
}

#[test]
fn other_devices_than_the_cpu_are_refused() {
    let dir = dataset();
    let commands = [
        "val --model m.pt --data ds",
        "train --model m.pt --data ds",
        "predict --model m.pt ds",
        "compress --model m.pt --data ds",
        "compare --model m.pt --data ds --macs 0.5",
        "bench train --model m.pt",
    ];
    for command in commands {
        for device in ["cuda:0", "0", "mps"] {
            let ran = prunella(dir.path(), &format!("{command} --device {device}"));
            let says = format!(
                "error: invalid value '{device}' for '--device <DEVICE>': Prunella computes on the CPU; `cpu` takes the \
                 best of what this one has: `cpu:"
            );
            assert!(ran.code == 2 && ran.stderr.starts_with(&says) && ran.stdout.is_empty(), "{command}: {ran:#?}");
        }
    }
}

#[test]
fn a_device_computes_with_its_instruction_set() {
    if testkit::shared().is_none() {
        return;
    }
    let args = "bench train --model {shared}/weights/yolov5n/yolov5n.pt --imgsz 64 --batch 1 --steps 1 --json";
    let kernels = |device: &str| {
        let ran = prunella(dataset().path(), &format!("{args}{device}"));
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:#?}"));
        json["kernels"].as_str().expect("a name").to_string()
    };
    assert_eq!(kernels(" --device cpu:baseline"), "baseline");
    assert_eq!(kernels(" --device cpu"), kernels(""));
}

#[test]
fn datasets_that_cannot_be_used_are_named_with_a_hint() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = dataset();
    let at = |path: &str| dir.path().join(path);
    fs::create_dir_all(at("bad/images/train")).expect("writable");
    fs::create_dir_all(at("bad/labels/train")).expect("writable");
    fs::write(at("bad/data.yaml"), "train: images/train\nnames: [a, b]\n").expect("writable");
    fs::copy(at("ds/images/train/a.png"), at("bad/images/train/a.png")).expect("writable");
    fs::write(at("bad/labels/train/a.txt"), "a b c\n").expect("writable");
    let cases = [
        Case {
            args: "val --model {shared}/weights/yolov5n/yolov5n.pt --data nowhere",
            code: 1,
            stderr: "error: dataset `nowhere`: there is no such file or folder\n",
        },
        Case {
            args: "val --model {shared}/weights/yolov5n/yolov5n.pt --data ds",
            code: 1,
            stderr: "error: dataset `ds`: holds no images in split `val`\nhint: run `prunella data check` on it to see what is wrong\n",
        },
        Case {
            args: "val --model {shared}/weights/yolov5n/yolov5n.pt --data ds --split test",
            code: 1,
            stderr: "error: dataset `ds`: has no split `test`\nhint: it has `train`, `val`\n",
        },
        Case {
            args: "val --model {shared}/weights/yolov5n/yolov5n.pt --data ds --split train",
            code: 1,
            stderr: "error: the detector knows 80 classes (person, bicycle, car, …), `ds` has 2 classes (a, b)\nhint: train it on this dataset first: \
                     `prunella train --model MODEL --data DATA`\n",
        },
        Case {
            args: "val --model {shared}/weights/yolov5n/yolov5n.pt --data ds --split train --imgsz 100",
            code: 2,
            stderr: "error: `--imgsz 100` is no multiple of 32, this detector's largest stride\nhint: try 96 or 128\n",
        },
        Case {
            args: "val --model {shared}/weights/yolov5n/yolov5n.pt --data bad",
            code: 1,
            stderr: "error: `bad/labels/train/a.txt`:1: the class is `a`, not a whole number from 0\nhint: each line is `class cx cy \
                     width height` (fractions of the image) or `class x1 y1 x2 y2 x3 y3 …`; `prunella data check` lists \
                     every such line\n",
        },
        Case {
            args: "val --model {shared}/weights/yolov5n/yolov5n.pt --data ds --data-format voc",
            code: 1,
            stderr: "error: dataset `ds`: holds no images in split `val`\nhint: run `prunella data check` on it to see what is wrong\n",
        },
        Case {
            args: "predict --model {shared}/weights/yolov5n/yolov5n.pt empty",
            code: 1,
            stderr: "error: `empty` holds no images\nhint: JPEG, PNG, BMP and WebP are read, by their extension\n",
        },
    ];
    check(dir.path(), &cases);
}

#[test]
fn a_demo_is_not_mixed_with_another() {
    let dir = dataset();
    fs::create_dir_all(dir.path().join("other")).expect("writable");
    fs::write(dir.path().join("other/recipe.toml"), "seed = 1\n").expect("writable");
    let demo = Case {
        args: "demo --out other",
        code: 1,
        stderr: "error: `other` holds a demo with another seed, or of another version\nhint: give another `--out`, or \
                 delete that folder\n",
    };
    check(dir.path(), &[demo]);
}

/// Whether this process, and so what it starts, is deaf to Ctrl-C, as jobs in the background are.
#[cfg(target_os = "linux")]
fn is_deaf() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask");
    u64::from_str_radix(ignored.trim(), 16).expect("a mask") & 0b10 != 0
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_that_is_interrupted_says_how_to_go_on() {
    use std::os::unix::process::ExitStatusExt;
    if is_deaf() {
        eprintln!("skipped: Ctrl-C is ignored here, as it is for jobs in the background");
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    common::squares(dir, [6, 2], &["disc", "square"]);
    common::done(dir, "new yolov5n --data ds --imgsz 64 --out new.safetensors");
    let args = "train --model new.safetensors --data ds --batch 2 --epochs 10000 --out run";
    let mut command = Command::new(env!("CARGO_BIN_EXE_prunella"));
    let command = command.args(args.split(' ')).current_dir(dir).env("NO_COLOR", "1");
    let mut run = command.stderr(std::process::Stdio::piped()).spawn().expect("the binary runs");
    while !dir.join("run/weights/resume.safetensors").is_file() {
        assert!(run.try_wait().expect("it is ours").is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let sent = Command::new("kill").args(["-INT", &run.id().to_string()]).status().expect("there is such a program");
    assert!(sent.success());
    let Output { status, stderr, .. } = run.wait_with_output().expect("it ends");
    let stderr = String::from_utf8(stderr).expect("UTF-8");
    assert_eq!(status.signal(), Some(2), "as without a word: {stderr}");
    assert!(stderr.ends_with("hint: the same command with `--out run --resume` goes on with this run\n"), "{stderr}");
}

#[test]
fn the_doctor_reports_and_says_so_in_its_exit_code() {
    let dir = dataset();
    let ran = prunella(dir.path(), "data check ds");
    assert_eq!((ran.code, ran.stderr.as_str()), (3, ""));
    let wanted = "\
split  images  boxes  left out
──────────────────────────────
train       1      1         0
val         0      0         0

class  boxes
────────────
a          1
b          0

class has no boxes: 1
  b
split has no images: 1
  val
";
    assert_eq!(ran.stdout, wanted);
    let json = prunella(dir.path(), "data check ds --json");
    let report: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!((json.code, &report["findings"]["empty_split"]["count"]), (3, &1.into()));
}

#[test]
fn outputs_that_cannot_be_written_fail_with_the_path() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = dataset();
    let export = "export --model {shared}/weights/yolo-fastest-1.1/yolo-fastest-1.1.cfg --imgsz 64 --out";
    let ran = prunella(dir.path(), &format!("{export} no/such/folder/x.onnx"));
    assert!(ran.code == 1 && ran.stderr.starts_with("error: cannot write `no/such/folder/x.onnx`"), "{ran:?}");
    assert!(ran.stderr.contains("\nhint: check the path"), "{ran:?}");
    // A folder in the place of a file.
    fs::create_dir(dir.path().join("folder.onnx")).expect("writable");
    let ran = prunella(dir.path(), &format!("{export} folder.onnx"));
    assert!(ran.code == 1 && ran.stderr.starts_with("error: cannot write `folder.onnx`"), "{ran:?}");
    assert!(!dir.path().join("no").exists());
}

#[test]
fn a_detector_is_shown_exported_and_run_as_the_same_one() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = dataset();
    let model = "{shared}/weights/yolo-fastest-1.1/yolo-fastest-1.1.cfg";
    let info = prunella(dir.path(), &format!("info {model} --json"));
    let info: serde_json::Value = serde_json::from_str(&info.stdout).expect("JSON");
    let sum =
        |key: &str| info["layers"].as_array().expect("layers").iter().map(|l| l[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((info["params"].as_u64(), info["macs"].as_u64()), (Some(sum("params")), Some(sum("macs"))));

    let export = prunella(dir.path(), &format!("export --model {model} --out fast.onnx --dynamic"));
    assert_eq!((export.code, export.stdout.as_str()), (0, "fast.onnx\n"), "{export:?}");
    let image = "{shared}/data/coco-val-206/images/000000000139.jpg";
    let ran = prunella(dir.path(), &format!("-q predict --model fast.onnx --json --save-txt --out seen {image}"));
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
    let found: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let boxes = found[0]["detections"].as_array().expect("detections").len();
    assert!(boxes > 0, "nothing was found");
    // The exported file remembers that Darknet stretches its images.
    let own = prunella(dir.path(), &format!("-q predict --model {model} --json --out own {image}"));
    let own: serde_json::Value = serde_json::from_str(&own.stdout).expect("JSON");
    assert_eq!(own[0]["detections"].as_array().expect("detections").len(), boxes);
    for (a, b) in
        own[0]["detections"].as_array().expect("detections").iter().zip(found[0]["detections"].as_array().unwrap())
    {
        let confidence = |d: &serde_json::Value| d["confidence"].as_f64().expect("a number");
        assert!((confidence(a) - confidence(b)).abs() < 1e-3, "{a} and {b}");
    }
    let labels = fs::read_to_string(dir.path().join("seen/000000000139.txt")).expect("labels");
    assert_eq!(labels.lines().count(), boxes);
    assert!(dir.path().join("seen/000000000139.jpg").is_file());
    // A model is never overwritten by its own export.
    let export = format!("export --model {model} --format safetensors --out own.safetensors");
    assert_eq!(prunella(dir.path(), &export).code, 0);
    let itself = prunella(dir.path(), "export --model own.safetensors --format safetensors");
    assert_eq!(itself.code, 2, "{itself:?}");
}

#[test]
fn yolox_is_run_and_compressed_from_its_authors_export() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = dataset();
    let model = "{shared}/weights/yolox-nano/yolox_nano.onnx";
    let image = "{shared}/data/coco-val-206/images/000000000139.jpg";
    // The file's own output is not decoded: our executor takes over.
    let found = |model: &str| {
        let ran = prunella(dir.path(), &format!("-q predict --model {model} --json --out seen {image}"));
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
        let found: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let boxes = found[0]["detections"].as_array().expect("detections").clone();
        boxes.iter().map(|b| b["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    let names = found(model);
    assert!(names.iter().any(|n| n == "person") && names.iter().any(|n| n == "tv"), "{names:?}");
    let export = prunella(dir.path(), &format!("export --model {model} --out yolox.onnx"));
    assert_eq!(export.code, 0, "{export:?}");
    assert_eq!(found("yolox.onnx"), names, "our export, in the embedded runtime");

    fs::create_dir_all(dir.path().join("ds/labels/val")).expect("writable");
    for (kind, file) in [("images", "a.png"), ("labels", "a.txt")] {
        let place = |split: &str| dir.path().join(format!("ds/{kind}/{split}/{file}"));
        fs::copy(place("train"), place("val")).expect("writable");
    }
    let options = "--data ds --macs 0.6 --imgsz 64 --epochs 1 --batch 4 --out run";
    let compress = prunella(dir.path(), &format!("compress --model {model} {options}"));
    assert_eq!(compress.code, 0, "{compress:?}");
    assert!(compress.stderr.contains("have one again"), "BatchNorm is measured anew: {compress:?}");
    let healed = fs::read_to_string(dir.path().join("run/heal/results.csv")).expect("healed");
    assert_eq!(healed.lines().count(), 2, "{healed}");
}

#[test]
fn a_detector_is_pruned_to_its_budget_without_data() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = dataset();
    let prune = "prune --model {shared}/weights/yolov5n/yolov5n.pt --macs 0.6 --imgsz 64";
    let plan = prunella(dir.path(), &format!("{prune} --dry-run --json"));
    let plan: serde_json::Value = serde_json::from_str(&plan.stdout).expect("JSON");
    let ran = prunella(dir.path(), &format!("{prune} --out slim.safetensors"));
    assert_eq!(ran.code, 0, "{ran:?}");
    let info = prunella(dir.path(), "info slim.safetensors --json");
    let info: serde_json::Value = serde_json::from_str(&info.stdout).expect("JSON");
    let planned = &plan[0]["after"];
    assert_eq!((&info["params"], &info["macs"]), (&planned["params"], &planned["macs"]));
    let before = plan[0]["before"]["macs"].as_f64().expect("a number");
    assert!(info["macs"].as_f64().expect("a number") <= 0.6 * before);
}

#[test]
fn a_cut_looks_at_images_alone() {
    if testkit::shared().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    common::squares(dir.path(), [6, 1], &["a", "b"]);
    let prune = "prune --model {shared}/weights/yolov5n/yolov5n.pt --macs 0.6 --imgsz 64";
    for (data, out) in [("ds", "labelled"), ("ds/images/train", "bare")] {
        let ran = prunella(dir.path(), &format!("{prune} --data {data} --out {out}.safetensors"));
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let file = |name: &str| fs::read(dir.path().join(name).with_extension("safetensors")).expect("written");
    assert!(file("labelled") == file("bare"), "what is cut depends on labels");
    let ran = prunella(dir.path(), &format!("{prune} --data empty --out no.safetensors"));
    assert!(ran.code == 1 && ran.stderr.contains("no such file or folder"), "{ran:?}");
    fs::create_dir(dir.path().join("empty")).expect("writable");
    let ran = prunella(dir.path(), &format!("{prune} --data empty --out no.safetensors"));
    assert!(ran.code == 1 && ran.stderr.contains("`empty`") && ran.stderr.contains("holds no images"), "{ran:?}");
}

#[test]
fn a_cfg_alone_is_shown_and_a_darknet_detector_written_as_one() {
    let Some(shared) = testkit::shared() else { return };
    let dir = dataset();
    fs::copy(shared.join("cfg/yolov3-tiny.cfg"), dir.path().join("tiny.cfg")).expect("writable");
    let info = prunella(dir.path(), "info tiny.cfg --json");
    let info: serde_json::Value = serde_json::from_str(&info.stdout).expect("JSON");
    assert_eq!((&info["untrained"], &info["params"]), (&true.into(), &8_852_366.into()));
    let shown = prunella(dir.path(), "info tiny.cfg").stdout;
    assert!(shown.contains("\nYOLOv3-tiny · ") && shown.ends_with("1.92 kB · no weights\n"), "{shown}");
    let case = Case {
        args: "val --model tiny.cfg --data ds --split train",
        code: 1,
        stderr: "error: `tiny.weights`: there is no such file, and `tiny.cfg` holds no weights\nhint: give the weights' file \
                 with `--weights FILE`\n",
    };
    check(dir.path(), &[case]);

    let fast = "{shared}/weights/yolo-fastest-1.1/yolo-fastest-1.1.cfg";
    let export = prunella(dir.path(), &format!("export --model {fast} --format darknet --out fast.cfg"));
    assert_eq!((export.code, export.stdout.as_str()), (0, "fast.cfg\n"), "{export:?}");
    let params = |model: &str| {
        let info = prunella(dir.path(), &format!("info {model} --json"));
        serde_json::from_str::<serde_json::Value>(&info.stdout).expect("JSON")["params"].clone()
    };
    assert_eq!(params("fast.cfg"), params(fast));
    // Both of its files count.
    let size = |name: &str| fs::metadata(dir.path().join(name)).expect("written").len();
    for model in ["fast.cfg", "fast.weights"] {
        let info = prunella(dir.path(), &format!("info {model} --json"));
        let info: serde_json::Value = serde_json::from_str(&info.stdout).expect("JSON");
        assert_eq!(
            (&info["file_bytes"], &info["weights_bytes"]),
            (&size("fast.cfg").into(), &size("fast.weights").into())
        );
        assert_eq!(info["recognised"], "YOLO-Fastest");
    }
    let shown = prunella(dir.path(), "info fast.cfg").stdout;
    assert!(shown.contains("\nYOLO-Fastest · ") && shown.ends_with(" of weights\n"), "{shown}");
    for args in [
        "export --model fast.cfg --format darknet",
        "export --model fast.weights --format darknet",
        "export --model fast.cfg --format darknet --out x.onnx",
        "export --model tiny.cfg --weights fast.weights --format darknet --out fast.cfg",
    ] {
        assert_ne!(prunella(dir.path(), args).code, 0, "{args}");
    }
    let v5 = "export --model {shared}/weights/yolov5n/yolov5n.pt --format darknet --out v5.cfg";
    let refused = prunella(dir.path(), v5);
    assert!(refused.code == 1 && refused.stderr.contains("as YOLOv5 does"), "{refused:?}");
    assert!(!dir.path().join("v5.cfg").exists());
}
