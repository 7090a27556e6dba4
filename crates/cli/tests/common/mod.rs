//! Running the program from outside, and a small dataset to run it on.
#![allow(dead_code)] // Each test binary uses a part of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs `prunella` in `dir`; an argument `{shared}/...` names test material. Exit code, stdout, stderr.
pub fn prunella(dir: &Path, args: &str) -> (i32, String, String) {
    let shared = testkit::shared().map(|s| s.canonicalize().expect("it is there").display().to_string());
    let args = args.split(' ').map(|a| a.replace("{shared}", shared.as_deref().unwrap_or("{shared}")));
    let mut command = Command::new(env!("CARGO_BIN_EXE_prunella"));
    let Output { status, stdout, stderr } =
        command.args(args).current_dir(dir).env("NO_COLOR", "1").output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

/// Runs a command that has to succeed and returns its stdout.
pub fn done(dir: &Path, args: &str) -> String {
    let (code, out, err) = prunella(dir, args);
    assert_eq!(code, 0, "{args}: {err}");
    out
}

/// The files of a dataset `ds` with so many pictures for training and validation, a dark square on each: the last of `names`.
pub fn squares(dir: &Path, [train, val]: [u32; 2], names: &[&str]) {
    let class = names.len() - 1;
    for (split, count) in [("train", train), ("val", val)] {
        for folder in ["images", "labels"] {
            fs::create_dir_all(dir.join("ds").join(folder).join(split)).expect("writable");
        }
        for i in 0..count {
            let mut image = image::RgbImage::from_pixel(64, 64, image::Rgb([180, 170, 160]));
            let corner = 4 + 5 * i;
            (0..24).for_each(|k| {
                (0..24).for_each(|j| image.put_pixel(corner + k, 8 + j, image::Rgb([40, 20, 30])));
            });
            image.save(dir.join(format!("ds/images/{split}/{i}.png"))).expect("writable");
            let x = f64::from(corner + 12) / 64.0;
            fs::write(dir.join(format!("ds/labels/{split}/{i}.txt")), format!("{class} {x} 0.3125 0.375 0.375\n"))
                .expect("writable");
        }
    }
    let names = names.join(", ");
    fs::write(dir.join("ds/data.yaml"), format!("train: images/train\nval: images/val\nnames: [{names}]\n"))
        .expect("writable");
}
