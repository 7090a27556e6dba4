//! Small datasets made on the spot: recognition, broken labels, the doctor, the made-up smears, the loader.

use std::path::Path;

use data::doctor;
use data::problem::Kind;
use data::synth::{self, SynthConfig};
use data::{Augment, Batch, Error, Format, Loader, LoaderConfig, Mode, OpenOptions, open, picture};
use image::{Rgb, RgbImage};

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn paint(path: &Path, (w, h): (u32, u32), shade: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(w, h, Rgb([shade, 40, 200])).save(path).unwrap();
}

fn lenient() -> OpenOptions {
    OpenOptions { lenient: true, ..OpenOptions::default() }
}

/// Two training images (a list file), one validation image (a folder), names as a map.
fn ultralytics(root: &Path) {
    for (i, name) in ["train/a.png", "train/b.png", "val/c.png"].iter().enumerate() {
        paint(&root.join("images").join(name), (40, 20), i as u8 * 20);
    }
    put(&root.join("labels/train/a.txt"), "0 0.5 0.5 0.5 0.5\n1 0.25 0.5 0.1 0.2\n");
    put(&root.join("labels/val/c.txt"), "1 0.1 0.1 0.9 0.1 0.9 0.8\n");
    put(&root.join("list.txt"), "images/train/a.png\n\nimages/train/b.png\n");
    put(
        &root.join("data.yaml"),
        "path: /nowhere\ntrain: list.txt\nval: [images/val]\ntest:\nnames:\n  0: cat\n  1: no\n",
    );
}

#[test]
fn ultralytics_in_its_variants() {
    let folder = tempfile::tempdir().unwrap();
    ultralytics(folder.path());
    let dataset = open(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!((dataset.format, dataset.names.join(" ")), (Format::Ultralytics, "cat no".into()));
    let train = dataset.split("train").unwrap();
    assert_eq!(train.items.len(), 2);
    assert_eq!(train.items[0].boxes[0].xyxy, [10.0, 5.0, 30.0, 15.0]);
    assert_eq!(train.items[1].boxes, []);
    let val = &dataset.split("val").unwrap().items[0];
    assert_eq!((val.size, val.boxes[0].class, val.boxes[0].xyxy), ((40, 20), 1, [4.0, 2.0, 36.0, 16.0]));
    assert!(dataset.split("test").is_err());

    // Roboflow's yaml points one folder too high.
    put(&folder.path().join("data.yaml"), "train: ../images/train\nval: ../images/val\nnames: [cat, dog]\n");
    assert_eq!(open(folder.path(), &OpenOptions::default()).unwrap().split("train").unwrap().items.len(), 2);
}

#[test]
fn broken_yaml_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let yaml = folder.path().join("data.yaml");
    for (text, told) in [
        ("train: [a", "not valid YAML"),
        ("train: a", "no `names`"),
        ("names: 3", "`names` must be"),
        ("names: {0: a, 2: b}", "without a gap"),
        ("names: [a]", "names no split"),
        ("names: [a]\ntrain: gone", "`train: gone` is not there"),
        ("names: [a]\ntrain: [gone, {a: b}]", "`train` must be a path or a list of paths"),
        ("names: [a]\nval: 3", "`val` must be a path"),
        ("nc: 3.0", "`nc` must be the whole number"),
        (&format!("names: [a]\nx:\n {}a", "- ".repeat(50_000)), "nested too deeply"),
        ("", "is empty"),
        ("- 1", "no `names`"),
    ] {
        put(&yaml, text);
        let message = open(&yaml, &OpenOptions::default()).unwrap_err().to_string();
        assert!(message.contains(told) && message.contains("data.yaml"), "{text:?}: {message}");
    }
    assert!(open(&folder.path().join("absent"), &OpenOptions::default()).is_err());
    let empty = tempfile::tempdir().unwrap();
    let message = open(empty.path(), &OpenOptions::default()).unwrap_err().to_string();
    assert!(message.contains("not recognised"), "{message}");
}

#[cfg(unix)]
#[test]
fn links_and_devices_do_not_hold_a_run_up() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    ultralytics(root);
    // Two links back are 2^40 paths.
    symlink(".", root.join("images/a")).unwrap();
    symlink(".", root.join("images/b")).unwrap();
    // A link's name comes first, its folder's own is what labels go by.
    symlink("train", root.join("images/another")).unwrap();
    put(&root.join("data.yaml"), "train: images\nnames: [cat, dog]\n");
    let train = &open(root, &OpenOptions::default()).unwrap().splits["train"];
    let images: Vec<_> =
        train.items.iter().map(|i| i.image.strip_prefix(root).unwrap().display().to_string()).collect();
    assert_eq!(images, ["images/train/a.png", "images/train/b.png", "images/val/c.png"]);

    put(&root.join("data.yaml"), "val: /dev/zero\nnames: [cat, dog]\n");
    let message = open(root, &OpenOptions::default()).unwrap_err().to_string();
    assert!(message.contains("/dev/zero") && message.contains("neither a folder nor a file"), "{message}");
}

#[test]
fn an_image_larger_than_memory_is_refused_before_it_is_decoded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jpg");
    RgbImage::new(40, 20).save(&path).unwrap();
    let mut jpeg = std::fs::read(&path).unwrap();
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xff; 4]);
    std::fs::write(&path, jpeg).unwrap();
    for error in [picture::size(&path).unwrap_err(), picture::decode(&path).unwrap_err()] {
        assert!(error.to_string().contains("65535 x 65535"), "{error}");
    }
}

#[test]
fn a_jpeg_without_its_end_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    ultralytics(folder.path());
    let path = folder.path().join("images/val/c.jpg");
    RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, x as u8, y as u8])).save(&path).unwrap();
    let count = || doctor::check(&open(folder.path(), &lenient()).unwrap()).count(Kind::CutShort);
    assert_eq!(count(), 0);
    let whole = std::fs::read(&path).unwrap();
    // A small picture in the header has an end of its own; what follows the end is no part of the picture.
    let mut header = whole.clone();
    header.splice(2..2, [0xff, 0xe1, 0, 4, 0xff, 0xd9]);
    std::fs::write(&path, &header[..header.len() - 2]).unwrap();
    assert_eq!(count(), 1);
    header.extend([0xff, 0xda, 0, 3]);
    std::fs::write(&path, header).unwrap();
    assert_eq!(count(), 0);
    std::fs::write(&path, &whole[..whole.len() * 2 / 3]).unwrap();
    assert_eq!(count(), 1);
}

#[test]
fn a_jpeg_without_its_end_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jpg");
    RgbImage::from_fn(64, 64, |x, y| Rgb([(x * y) as u8, x as u8, y as u8])).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() * 2 / 3]).unwrap();
    let error = picture::decode(&path).unwrap_err().to_string();
    assert!(error.contains("x.jpg`: it is cut short, "), "{error}");
    assert_eq!(picture::size(&path).unwrap(), (64, 64));
}

#[test]
fn a_split_is_read_whatever_is_wrong_with_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let only = |split: &str| open(root, &OpenOptions { split: Some(split.into()), ..OpenOptions::default() });
    ultralytics(root);
    put(&root.join("labels/train/b.txt"), "cat 0.5 0.5 0.2 0.2\n");
    put(&root.join("images/train/a.png"), "no image");
    assert!(only("train").is_err() && open(root, &OpenOptions::default()).is_err());
    assert_eq!(only("val").unwrap().splits.keys().collect::<Vec<_>>(), ["val"]);
    let error = only("test").unwrap_err();
    assert!(error.to_string().contains("no split `test`"), "{error}");
    put(&root.join("data.yaml"), "val:\ntest: images/val\nnames: [cat, dog]\n");
    assert_eq!(only("val").unwrap().answering("val"), "test", "the only one stands in");

    // COCO's classes are numbered over all files, VOC's over all annotations where nothing lists them.
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let only = || open(root, &OpenOptions { split: Some("val".into()), ..OpenOptions::default() });
    paint(&root.join("x.png"), (40, 20), 9);
    for (split, classes, label) in [("val", "4", "[1, 2, 10, 5]"), ("train", "2", "[1, 2]")] {
        let json = format!(
            r#"{{"images": [{{"id": 5, "file_name": "x.png", "width": 40, "height": 20}}],
            "annotations": [{{"image_id": 5, "category_id": {classes}, "bbox": {label}, "iscrowd": true}}],
            "categories": [{{"id": {classes}, "name": "c{classes}"}}]}}"#
        );
        put(&root.join(format!("annotations/instances_{split}.json")), &json);
    }
    assert!(open(root, &OpenOptions::default()).is_err());
    let dataset = only().unwrap();
    let label = &dataset.split("val").unwrap().items[0].boxes[0];
    assert_eq!((dataset.names.join(" "), label.class, label.crowd), ("c2 c4".into(), 1, true));
    std::fs::remove_dir_all(root.join("annotations")).unwrap();

    put(&root.join("ImageSets/Main/val.txt"), "x\n");
    put(&root.join("ImageSets/Main/train.txt"), "y\n");
    let object = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>8</xmax><ymax>9</ymax></bndbox>";
    let xml = |class: &str| format!("<annotation><object><name>{class}</name>{object}</object></annotation>");
    paint(&root.join("y.png"), (40, 20), 19);
    put(&root.join("y.xml"), &xml("dog"));
    put(&root.join("x.xml"), &xml("cat"));
    assert_eq!((only().unwrap().names.join(" "), only().unwrap().splits.len()), ("dog cat".into(), 1));
    put(&root.join("classes.txt"), "cat\ndog\n");
    put(&root.join("y.xml"), "<html/>");
    assert!(only().is_ok() && open(root, &OpenOptions::default()).is_err());
}

#[test]
fn images_that_are_listed_and_missing_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    ultralytics(root);
    put(&root.join("list.txt"), "images/train/a.png\nimages/train/gone.png\nimages/train/lost.png\n");
    let dataset = open(root, &OpenOptions::default()).unwrap();
    let (missing, first) = dataset.split("train").unwrap().missing().unwrap();
    assert!(missing == 2 && first.ends_with("images/train/gone.png"), "{missing} {first}");
    assert_eq!(dataset.split("val").unwrap().missing(), None);

    std::fs::remove_file(root.join("data.yaml")).unwrap();
    let json = r#"{"images": [{"id": 5, "file_name": "a.png", "width": 40, "height": 20}, {"id": 6, "file_name": "gone.png", "width": 4, "height": 2}],
        "annotations": [{"id": 1, "image_id": 5, "category_id": 1, "bbox": [1, 2, 10, 5]}], "categories": [{"id": 1, "name": "cat"}]}"#;
    put(&root.join("images/train/annotations.json"), json);
    let dataset = open(&root.join("images/train"), &OpenOptions::default()).unwrap();
    assert_eq!(dataset.split("val").unwrap().missing(), Some((1, "gone.png")));

    let voc = tempfile::tempdir().unwrap();
    let root = voc.path();
    paint(&root.join("JPEGImages/x.png"), (40, 20), 9);
    let object = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>8</xmax><ymax>9</ymax></bndbox>";
    for id in ["x", "gone"] {
        put(
            &root.join(format!("Annotations/{id}.xml")),
            &format!("<annotation><object><name>cat</name>{object}</object></annotation>"),
        );
    }
    let dataset = open(root, &OpenOptions::default()).unwrap();
    let (missing, first) = dataset.split("val").unwrap().missing().unwrap();
    assert!(missing == 1 && first.ends_with("JPEGImages/gone"), "{missing} {first}");
}

#[test]
fn a_label_that_is_no_label_stops_the_run_and_is_a_finding_for_the_doctor() {
    let folder = tempfile::tempdir().unwrap();
    ultralytics(folder.path());
    put(&folder.path().join("labels/train/b.txt"), "0 0.5 0.5 0.2 0.2\ncat 0.5 0.5 0.2 0.2\n");
    let error = open(folder.path(), &OpenOptions::default()).unwrap_err();
    assert!(matches!(error, Error::Format { line: Some(2), .. }), "{error}");
    assert!(error.to_string().contains("b.txt`:2"), "{error}");

    let report = doctor::check(&open(folder.path(), &lenient()).unwrap());
    assert_eq!(report.count(Kind::Malformed), 1);
    assert!(report.findings[&Kind::Malformed].examples[0].place.ends_with("b.txt:2"));
}

#[test]
fn the_doctor_names_each_disease() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    ultralytics(root);
    let lines = [
        "0 0.5 0.5 0.5 0.5",
        "0 0.5 0.5 0.5 0.5", // stands twice
        "7 0.5 0.5 0.5 0.5", // no such class
        "0 0.5 0.5 0.0 0.5", // no area
        "0 nan 0.5 0.1 0.5", // no number
        "0 nan 0 1 1 0.5 1", // none in an outline
        "0 1.5 0.5 0.2 0.2", // outside
        "0 0.9 0.5 0.4 0.2", // over the border
    ];
    put(&root.join("labels/train/a.txt"), &lines.join("\n"));
    std::fs::copy(root.join("images/train/a.png"), root.join("images/val/copy.png")).unwrap();
    std::fs::copy(root.join("images/val/c.png"), root.join("images/val/twin.png")).unwrap();
    put(&root.join("list.txt"), "images/train/a.png\nimages/train/b.png\nimages/train/gone.png\n");
    // A header that reads and pixels that do not.
    let whole = std::fs::read(root.join("images/train/b.png")).unwrap();
    std::fs::write(root.join("images/train/b.png"), &whole[..whole.len() - 30]).unwrap();
    put(&root.join("data.yaml"), "train: list.txt\nval: images/val\nnames: [cat, dog, bird]\n");

    let dataset = open(root, &OpenOptions::default()).unwrap();
    let report = doctor::check(&dataset);
    let counts: Vec<_> = report.findings.iter().map(|(kind, f)| (*kind, f.count)).collect();
    let expected = [
        (Kind::MissingImage, 1),
        (Kind::Unreadable, 1),
        (Kind::ClassRange, 1),
        (Kind::NoArea, 3),
        (Kind::Outside, 1),
        (Kind::OverBorder, 1),
        (Kind::DuplicateBox, 1),
        (Kind::DuplicateImage, 1),
        (Kind::Leak, 1),
        (Kind::EmptyClass, 1),
        (Kind::Unlabelled, 3),
    ];
    assert_eq!(counts, expected, "{:#?}", report.findings);
    assert_eq!(dataset.split("train").unwrap().skipped(), 5);
    assert_eq!(report.classes, [("cat".into(), 3), ("dog".into(), 1), ("bird".into(), 0)]);

    let items = &dataset.split("train").unwrap().items;
    let config = LoaderConfig { size: 32, batch: 2, ..LoaderConfig::default() };
    let error = Loader::new(items, config).unwrap().epoch(0).next().unwrap().unwrap_err();
    assert!(error.to_string().contains("b.png"), "{error}");
}

#[test]
fn the_doctor_sees_what_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for (i, name) in ["a.png", "b.png"].iter().enumerate() {
        paint(&root.join("images/train").join(name), (40, 20), i as u8 * 20);
    }
    put(&root.join("images/train/scan.TIFF"), "");
    put(&root.join("data.yaml"), "\u{feff}train: images/train\nnc: 3\nnames: [cat]\n");
    put(&root.join("labels/train/a.txt"), "\u{feff}0 0.5 0.5 0.5 0.5\n");
    std::fs::write(root.join("labels/train/b.txt"), [b'0', 0xff]).unwrap();
    for (name, text) in [("gone", ""), ("scan", ""), ("classes", "cat\n")] {
        put(&root.join(format!("labels/train/{name}.txt")), text);
    }
    let dataset = open(root, &lenient()).unwrap();
    assert_eq!(dataset.split("val").unwrap().items[0].boxes.len(), 1, "a byte order mark is no part of a label");
    assert_eq!((dataset.answering("val"), dataset.answering("test")), ("train", "test"));
    let report = doctor::check(&dataset);
    let found = |kind: Kind, place: &str, detail: &str| {
        let finding = report.findings.get(&kind).unwrap_or_else(|| panic!("no {kind:?} in {report:#?}"));
        let first = &finding.examples[0];
        assert!(finding.count == 1 && first.place.ends_with(place) && first.detail == detail, "{finding:#?}");
    };
    found(Kind::UnreadImage, "scan.TIFF", "");
    found(Kind::StrayLabel, "gone.txt", "");
    found(Kind::ClassCount, "data.yaml", "`nc` is 3, the names are 1");
    found(Kind::NoVal, "", "without a split `val`, `train` stands in for it");
    found(Kind::Malformed, "b.txt", "is not text (UTF-8)");
    let error = open(root, &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("b.txt`: is not text"), "{error}");
}

#[test]
fn a_dataset_with_nothing_left_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    ultralytics(folder.path());
    std::fs::remove_dir_all(folder.path().join("labels")).unwrap();
    assert!(
        open(folder.path(), &OpenOptions::default()).unwrap_err().to_string().contains("no image has a usable box")
    );
}

#[test]
fn coco_of_two_splits_in_the_official_layout() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for split in ["train2017", "val2017"] {
        paint(&root.join("images").join(split).join("x.png"), (40, 20), 9);
        let json = r#"{"images": [{"id": 5, "file_name": "x.png", "width": 40, "height": 20}],
            "annotations": [{"id": 1, "image_id": 5, "category_id": 9, "bbox": [1, 2, 10, 5], "area": 33.5, "iscrowd": 0},
                            {"id": 2, "image_id": 5, "category_id": 8, "bbox": [1, 2, 10, 5]}],
            "categories": [{"id": 9, "name": "nine"}, {"id": 4, "name": "four"}]}"#;
        put(&root.join(format!("annotations/instances_{split}.json")), json);
    }
    let dataset = open(root, &OpenOptions::default()).unwrap();
    assert_eq!((dataset.names.join(" "), &dataset.category_ids[..]), ("four nine".into(), &[4, 9][..]));
    assert_eq!(dataset.splits.keys().collect::<Vec<_>>(), ["train", "val"]);
    let split = dataset.split("train").unwrap();
    assert_eq!((split.items[0].id, split.skipped()), (5, 1));
    let label = split.items[0].boxes[0];
    assert_eq!((label.class, label.xyxy, label.area), (1, [1.0, 2.0, 11.0, 7.0], 33.5));

    let file = root.join("annotations/instances_val2017.json");
    let twice = std::fs::read_to_string(&file).unwrap();
    let image = r#"{"id": 5, "file_name": "x.png", "width": 40, "height": 20}"#;
    put(&file, &twice.replacen(image, &format!("{image}, {image}"), 1));
    let split = open(root, &OpenOptions::default()).unwrap().splits["val"].clone();
    assert_eq!((split.items.len(), split.problems[0].kind), (1, Kind::Malformed));
    assert!(split.problems[0].detail.contains("image 5 is listed twice"), "{:?}", split.problems[0]);

    let wrong = OpenOptions { images: Some(root.join("annotations")), ..OpenOptions::default() };
    assert!(open(root, &wrong).unwrap_err().to_string().contains("none of its images"));
}

#[test]
fn voc_in_a_plain_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    paint(&root.join("x.png"), (40, 20), 9);
    let object = |name: &str, xmax: &str| {
        format!(
            "<object><name>{name}</name><difficult>1</difficult>\
             <bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{xmax}</xmax><ymax>9.5</ymax></bndbox></object>"
        )
    };
    let write = |body: &str| put(&root.join("x.xml"), &format!("<annotation>\n{body}\n</annotation>"));
    write(&format!("<size><width>0</width><height>0</height></size>{}{}", object("dog", "12"), object("cat", "4")));
    let dataset = open(root, &OpenOptions::default()).unwrap();
    let item = &dataset.split("val").unwrap().items[0];
    assert_eq!((dataset.format, dataset.names.join(" "), item.size), (Format::Voc, "dog cat".into(), (40, 20)));
    assert_eq!((item.boxes[0].xyxy, item.boxes[0].difficult), ([1.0, 2.0, 12.0, 9.5], true));

    put(&root.join("classes.txt"), "cat\ndog\n");
    assert_eq!(open(root, &OpenOptions::default()).unwrap().split("val").unwrap().items[0].boxes[0].class, 1);

    write(&object("dog", "twelve"));
    let error = open(root, &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("x.xml`:2") && error.contains("`twelve`"), "{error}");
    put(&root.join("x.xml"), "<html/>");
    let error = open(root, &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("<html>, not <annotation>"), "{error}");
    let attributes: String = (0..100_000).map(|i| format!(" a{i}=\"1\"")).collect();
    put(&root.join("x.xml"), &format!("<annotation{attributes}/>"));
    let error = open(root, &OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("a tag of more than"), "{error}");
    write("<object>");
    assert!(open(root, &OpenOptions::default()).unwrap_err().to_string().contains("not valid XML"));
}

#[test]
fn a_turned_photograph_is_read_upright() {
    // A JPEG of 40 x 20 whose EXIF says "turn me by a quarter" (orientation 6).
    let mut jpeg = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new(&mut jpeg);
    RgbImage::new(40, 20).write_with_encoder(encoder).unwrap();
    let tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let mut segment = vec![0xff, 0xe1, 0, (8 + tiff.len()) as u8];
    segment.extend(b"Exif\0\0");
    segment.extend(tiff);
    jpeg.splice(2..2, segment);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jpg");
    std::fs::write(&path, jpeg).unwrap();
    assert_eq!(picture::size(&path).unwrap(), (20, 40));
    assert_eq!(picture::decode(&path).unwrap().dimensions(), (20, 40));
}

fn smears(root: &Path) -> data::Dataset {
    let config = SynthConfig { train: 22, val: 5, test: 3, size: 96, seed: 3 };
    open(&synth::write(root, &config).unwrap(), &OpenOptions::default()).unwrap()
}

#[test]
fn made_up_smears_are_a_sound_dataset() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = smears(folder.path());
    assert_eq!(dataset.names, synth::NAMES);
    let report = doctor::check(&dataset);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert!(synth::write(folder.path(), &SynthConfig::default()).is_err(), "must not write over a dataset");
    // What was ended while rendering goes on: data.yaml comes last.
    std::fs::remove_file(folder.path().join("data.yaml")).unwrap();
    std::fs::remove_file(folder.path().join("images/val/00004.jpg")).unwrap();
    smears(folder.path());
    let again = tempfile::tempdir().unwrap();
    smears(again.path());
    for file in ["images/val/00004.jpg", "labels/train/00021.txt"] {
        assert_eq!(std::fs::read(folder.path().join(file)).unwrap(), std::fs::read(again.path().join(file)).unwrap());
    }
}

#[test]
fn batches_do_not_depend_on_threads_or_cache() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = smears(folder.path());
    let items = &dataset.split("train").unwrap().items;
    let run = |threads: usize, cache_bytes: usize, epoch: u64| -> Vec<Batch> {
        let config = LoaderConfig { size: 64, batch: 4, threads, cache_bytes, ..LoaderConfig::default() };
        let loader = Loader::new(items, config).unwrap();
        let _ = loader.epoch(7).next(); // dropped half way: must neither hang nor matter
        loader.epoch(epoch).collect::<Result<_, _>>().unwrap()
    };
    let one = run(1, 1 << 30, 0);
    assert_eq!(one.iter().map(|b| b.n).collect::<Vec<_>>(), [4, 4, 4, 4, 4, 2]);
    assert_eq!(one, run(3, 0, 0));
    assert_eq!(one, run(2, 64 * 64 * 3 * 5, 0));
    let next = run(2, 1 << 30, 1);
    assert_ne!(one[0].items, next[0].items);
    let mut seen: Vec<_> = next.iter().flat_map(|b| b.items.clone()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..22).collect::<Vec<_>>());
    for batch in &one {
        assert_eq!(batch.images.len(), batch.n * 64 * 64 * 3);
        for target in &batch.targets {
            let [cx, cy, w, h] = target.bbox;
            let inside = cx - w / 2.0 >= -1e-6
                && cy - h / 2.0 >= -1e-6
                && cx + w / 2.0 <= 1.0 + 1e-6
                && cy + h / 2.0 <= 1.0 + 1e-6;
            assert!(inside && target.image < batch.n, "{target:?}");
        }
    }
}

#[test]
fn validation_comes_in_order_and_maps_back() {
    let folder = tempfile::tempdir().unwrap();
    let dataset = smears(folder.path());
    let items = &dataset.split("val").unwrap().items;
    let config = LoaderConfig { size: 64, batch: 3, mode: Mode::Val(data::Fit::Letterbox), ..LoaderConfig::default() };
    let batches: Vec<_> = Loader::new(items, config).unwrap().epoch(0).collect::<Result<_, _>>().unwrap();
    assert_eq!(batches.iter().flat_map(|b| b.items.clone()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    for batch in &batches {
        for target in &batch.targets {
            let [cx, cy, w, h] = target.bbox.map(|v| v * 64.0);
            let back =
                batch.letterboxes[target.image].to_image([cx - w / 2.0, cy - h / 2.0, cx + w / 2.0, cy + h / 2.0]);
            let near = |b: &data::LabelBox| b.xyxy.iter().zip(back).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(items[batch.items[target.image]].boxes.iter().any(near), "{back:?}");
        }
    }
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let items = smears(folder.path()).split("val").unwrap().items.clone();
    let wild = Augment { scale: 1.5, ..Augment::default() };
    for config in [
        LoaderConfig { batch: 0, ..LoaderConfig::default() },
        LoaderConfig { size: 0, ..LoaderConfig::default() },
        LoaderConfig { threads: 0, ..LoaderConfig::default() },
        LoaderConfig { mode: Mode::Train(wild), ..LoaderConfig::default() },
    ] {
        assert!(Loader::new(&items, config).is_err(), "{config:?}");
    }
    assert!(Loader::new(&[], LoaderConfig::default()).is_err());
}
