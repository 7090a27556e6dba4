//! scratch
use eval::NmsConfig;
use eval::coco::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let g = graph::format::load(std::path::Path::new(&a[1]), &Default::default()).unwrap();
    let ds = data::open(std::path::Path::new(&a[2]), &Default::default()).unwrap();
    let s = g.meta.imgsz[0];
    let items = &ds.splits.values().next().unwrap().items;
    for (filter, ft) in [("tri", image::imageops::FilterType::Triangle), ("near", image::imageops::FilterType::Nearest)]
    {
        for (iou, ml) in [(0.6, true), (0.45, true), (0.6, false), (0.45, false)] {
            let mut det = train::evaluate::Detector::new(&g, s).unwrap();
            let (mut im, mut an, mut fo) = (vec![], vec![], vec![]);
            for it in items {
                let img = data::picture::decode(&it.image).unwrap();
                let (w, h) = (img.width() as f64, img.height() as f64);
                let r = image::imageops::resize(&img, s as u32, s as u32, ft);
                let d = det
                    .detect(r.as_raw(), 1, &NmsConfig { conf: 0.001, iou, multi_label: ml, ..Default::default() })
                    .unwrap();
                for d in &d[0] {
                    let b = d.bbox.map(f64::from);
                    let (fx, fy) = (w / s as f64, h / s as f64);
                    let c = |v: f64, m: f64| v.clamp(0.0, m);
                    let (x1, y1, x2, y2) = (c(b[0] * fx, w), c(b[1] * fy, h), c(b[2] * fx, w), c(b[3] * fy, h));
                    fo.push(ScoredBox {
                        image_id: it.id as i64,
                        category_id: ds.category_ids[d.class] as i64,
                        bbox: [x1, y1, x2 - x1, y2 - y1],
                        score: d.score as f64,
                    });
                }
                im.push(Image { id: it.id as i64, file_name: String::new(), width: w as usize, height: h as usize });
                for b in &it.boxes {
                    let q = b.xyxy.map(f64::from);
                    an.push(Annotation {
                        image_id: it.id as i64,
                        category_id: ds.category_ids[b.class] as i64,
                        bbox: [q[0], q[1], q[2] - q[0], q[3] - q[1]],
                        area: b.area,
                        crowd: b.crowd,
                    });
                }
            }
            let categories = ds
                .category_ids
                .iter()
                .zip(&ds.names)
                .map(|(i, n)| Category { id: *i as i64, name: n.clone() })
                .collect();
            let m = evaluate(&GroundTruth { images: im, annotations: an, categories }, &fo).unwrap();
            println!("{filter} iou {iou} multi {ml}: {:.4} {:.4}", m.map50_95, m.map50);
        }
    }
}
