//! The report's drawings, as SVG that takes its colours from the page's style sheet.

use std::fmt::Write;

use train::sparse::GammaHistogram;

use super::markup::escape;
use super::{PrPanel, StageRow};

/// The style-sheet colour of stage number `index` of `count`: the first is grey, the last the accent.
pub fn stage_colour(index: usize, count: usize) -> String {
    let hue = if index + 1 == count && count > 1 { 6 } else { index.min(5) };
    format!("var(--c{hue})")
}

/// A drawing area inside an SVG of a given size: data to pixels, y upwards.
struct Frame {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    x: [f64; 2],
    y: [f64; 2],
}

impl Frame {
    fn px(&self, x: f64) -> f64 {
        self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * self.width
    }

    fn py(&self, y: f64) -> f64 {
        self.top + self.height - (y - self.y[0]) / (self.y[1] - self.y[0]) * self.height
    }

    fn points(&self, points: impl IntoIterator<Item = [f64; 2]>) -> String {
        let mut path = String::new();
        for [x, y] in points {
            let _ = write!(path, "{}{:.1} {:.1}", if path.is_empty() { "M" } else { "L" }, self.px(x), self.py(y));
        }
        path
    }

    /// A horizontal line with its value at the left.
    fn rule(&self, svg: &mut String, y: f64, label: &str) {
        let (x0, x1, py) = (self.left, self.left + self.width, self.py(y));
        let _ = write!(svg, r#"<path class="grid" d="M{x0:.1} {py:.1}H{x1:.1}"/>"#);
        let _ = write!(svg, r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#, x0 - 8.0, py + 3.5);
    }

    /// Round values of x, which begins at nought, on a line of text at `y` in the drawing.
    fn ticks(&self, svg: &mut String, y: f64) {
        for (value, text) in ticks(self.x[1]) {
            let x = self.px(value);
            let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="middle">{text}</text>"#);
        }
    }
}

fn open(width: f64, height: f64, title: &str) -> String {
    format!(r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}">"#)
}

/// mAP50 and mAP50-95 from stage to stage.
pub fn accuracy(stages: &[StageRow]) -> String {
    let (width, height) = (1000.0, 270.0);
    let top = stages.iter().map(|s| s.map50.max(s.map50_95)).fold(0.0, f64::max);
    let y = [0.0, (top * 5.0 + 0.25).ceil().max(1.0) / 5.0];
    let frame = Frame { left: 44.0, top: 22.0, width: 920.0, height: 200.0, x: [-0.35, stages.len() as f64 - 0.65], y };
    let mut svg = open(width, height, "mAP after each stage");
    for step in 0..=(y[1] * 5.0).round() as usize {
        frame.rule(&mut svg, step as f64 / 5.0, &format!("{:.1}", step as f64 / 5.0));
    }
    type Value = fn(&StageRow) -> f64;
    let series: [(&str, Value, &str); 2] = [("mAP50", |s| s.map50, "--c3"), ("mAP50-95", |s| s.map50_95, "--accent")];
    for (name, value, colour) in series {
        let line = frame.points(stages.iter().enumerate().map(|(i, s)| [i as f64, value(s)]));
        let _ = write!(svg, r#"<path class="curve" d="{line}" style="stroke:var({colour})"/>"#);
        for (i, stage) in stages.iter().enumerate() {
            let (x, y) = (frame.px(i as f64), frame.py(value(stage)));
            let _ = write!(svg, r#"<circle cx="{x:.1}" cy="{y:.1}" r="4" style="fill:var({colour})"/>"#);
            let text = format!("{:.3}", value(stage));
            let _ = write!(
                svg,
                r#"<text class="strong" x="{x:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
                y - 10.0
            );
        }
        if let Some(last) = stages.last() {
            let (x, y) = (frame.px(stages.len() as f64 - 1.0) + 28.0, frame.py(value(last)) + 4.0);
            let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}" style="fill:var({colour})">{name}</text>"#);
        }
    }
    for (i, stage) in stages.iter().enumerate() {
        let x = frame.px(i as f64);
        let name = escape(&stage.stage);
        let _ = write!(svg, r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{name}</text>"#, height - 22.0);
    }
    svg.push_str("</svg>");
    svg
}

/// One ridge an epoch (at most 24 of them): how the scales move to zero.
pub fn gammas(histograms: &[GammaHistogram]) -> String {
    let keep = histograms.len().div_ceil(24).max(1);
    // The last epoch is always shown.
    let shown: Vec<&GammaHistogram> =
        histograms.iter().rev().step_by(keep).collect::<Vec<_>>().into_iter().rev().collect();
    let (width, step, ridge) = (1000.0, 19.0, 58.0);
    let height = ridge + step * shown.len() as f64 + 34.0;
    let max = some(shown.iter().map(|h| f64::from(h.top)).fold(0.0, f64::max));
    let tallest = shown.iter().flat_map(|h| &h.counts).copied().max().map_or(1.0, f64::from).max(1.0);
    let mut svg = open(width, height, "Histogram of |gamma| after each epoch");
    let _ = write!(svg, r#"<text x="62" y="12" text-anchor="end">epoch</text>"#);
    let _ = write!(svg, r#"<text x="{:.1}" y="12" text-anchor="end">near zero</text>"#, width);
    for (i, histogram) in shown.iter().enumerate() {
        let base = ridge + step * i as f64;
        let frame = Frame { left: 76.0, top: base - ridge, width: 840.0, height: ridge, x: [0.0, max], y: [0.0, 1.0] };
        let top = f64::from(histogram.top);
        let bin = top / histogram.counts.len().max(1) as f64;
        let level = |n: &u32| (f64::from(*n) / tallest).sqrt();
        let outline = histogram.counts.iter().enumerate().map(|(k, n)| [(k as f64 + 0.5) * bin, level(n)]);
        let start = [0.0, histogram.counts.first().map_or(0.0, level)];
        let line = frame.points(std::iter::once(start).chain(outline).chain([[top, 0.0]]));
        let (x0, x1, y) = (frame.px(0.0), frame.px(top), frame.py(0.0));
        let colour = format!("color-mix(in srgb, var(--accent) {:.0}%, var(--c0))", 100.0 * share(i, shown.len()));
        // The paper-coloured body hides the ridges behind.
        let _ = write!(svg, r#"<path d="{line}V{y:.1}H{x0:.1}Z" style="fill:var(--card)"/>"#);
        let _ = write!(svg, r#"<path d="{line}V{y:.1}H{x0:.1}Z" style="fill:{colour};opacity:.22"/>"#);
        let _ = write!(svg, r#"<path class="curve" d="{line}H{x1:.1}" style="stroke:{colour}"/>"#);
        let _ = write!(svg, r#"<text x="62" y="{:.1}" text-anchor="end">{}</text>"#, y + 1.0, histogram.epoch);
        let zero = 100.0 * histogram.share;
        let _ = write!(svg, r#"<text x="{width}" y="{:.1}" text-anchor="end">{zero:.0} %</text>"#, y + 1.0);
    }
    let frame = Frame { left: 76.0, top: 0.0, width: 840.0, height, x: [0.0, max], y: [0.0, 1.0] };
    frame.ticks(&mut svg, height - 12.0);
    svg.push_str("</svg>");
    svg
}

/// Precision over recall, a line a stage; `stages` fixes the colours.
pub fn precision_recall(panel: &PrPanel, stages: &[StageRow]) -> String {
    let (width, height) = (320.0, 262.0);
    let frame = Frame { left: 34.0, top: 28.0, width: 278.0, height: 196.0, x: [0.0, 1.0], y: [0.0, 1.0] };
    let title = escape(&panel.title);
    let mut svg = open(width, height, &format!("Precision over recall, {title}"));
    let _ = write!(svg, r#"<text class="strong" x="{}" y="13">{title}</text>"#, frame.left);
    for i in 0..=4 {
        let value = f64::from(i) / 4.0;
        frame.rule(&mut svg, value, &format!("{value:.2}"));
        let anchor = ["start", "middle", "middle", "middle", "end"][i as usize];
        let (x, y) = (frame.px(value), frame.py(0.0) + 16.0);
        let _ = write!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{value:.2}</text>"#);
    }
    for curve in &panel.curves {
        let index = stages.iter().position(|s| s.stage == curve.stage).unwrap_or(0);
        let colour = stage_colour(index, stages.len());
        let line = frame.points(curve.points.iter().copied());
        let _ = write!(svg, r#"<path class="curve" d="{line}" style="stroke:{colour}"/>"#);
    }
    let _ = write!(svg, r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">recall</text>"#, frame.px(0.5), height - 6.0);
    svg.push_str("</svg>");
    svg
}

/// A method's points in a frontier plot.
pub struct Cloud {
    pub name: String,
    pub points: Vec<Point>,
}

/// One of them.
pub struct Point {
    pub x: f64,
    pub y: f64,
    /// Of y.
    pub deviation: f64,
    /// Whether the method's line goes through it.
    pub is_best: bool,
    /// What it is, for who points at it.
    pub about: String,
}

/// Accuracy over some size: a mark a point and a line a method, the last in the accent colour, names at the right.
pub fn frontier(label: &str, clouds: &[Cloud]) -> String {
    let (width, height) = (520.0, 330.0);
    let points = || clouds.iter().flat_map(|c| &c.points).filter(|p| p.x.is_finite() && p.y.is_finite());
    let right = some(points().map(|p| p.x).fold(0.0, f64::max) * 1.08);
    let low = points().map(|p| p.y - p.deviation).fold(f64::INFINITY, f64::min).clamp(0.0, 1.0);
    let high = points().map(|p| p.y + p.deviation).fold(low, f64::max);
    // From nought up, points that differ by what matters would lie on each other.
    let step = [0.01, 0.02, 0.05, 0.1].into_iter().find(|step| high - low <= 7.0 * step).unwrap_or(0.2);
    let first = (low / step).floor() as usize;
    let last = ((high / step).ceil() as usize).max(first + 1);
    let y = [first, last].map(|rule| rule as f64 * step);
    let frame = Frame { left: 40.0, top: 20.0, width: 340.0, height: 250.0, x: [0.0, right], y };
    let mut svg = open(width, height, &format!("mAP50-95 over {label}"));
    for rule in first..=last {
        let value = rule as f64 * step;
        frame.rule(&mut svg, value, &format!("{value:.2}"));
    }
    frame.ticks(&mut svg, frame.py(frame.y[0]) + 16.0);
    let middle = frame.px(right / 2.0);
    let _ = write!(svg, r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">{label}</text>"#, height - 18.0);
    for (i, cloud) in clouds.iter().enumerate() {
        let last = i + 1 == clouds.len();
        let colour =
            if last { "var(--accent)".into() } else { format!("hsl({:.0} 45% 50%)", 360.0 * share(i, clouds.len())) };
        let mut points: Vec<&Point> = cloud.points.iter().filter(|p| p.y.is_finite()).collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        let line = frame.points(points.iter().filter(|p| p.is_best).map(|p| [p.x, p.y]));
        let _ = write!(svg, r#"<path class="curve" d="{line}" style="stroke:{colour}"/>"#);
        for point in points {
            let (px, py) = (frame.px(point.x), frame.py(point.y));
            let [top, bottom] = [point.deviation, -point.deviation].map(|off| frame.py(point.y + off));
            let _ = write!(svg, r#"<path d="M{px:.1} {top:.1}V{bottom:.1}" style="stroke:{colour}"/>"#);
            let radius = if last { 5 } else { 3 };
            let fill = if point.is_best { format!("fill:{colour}") } else { format!("fill:none;stroke:{colour}") };
            let _ = write!(
                svg,
                r#"<circle cx="{px:.1}" cy="{py:.1}" r="{radius}" style="{fill}"><title>{}</title></circle>"#,
                escape(&point.about)
            );
        }
        let (x, y) = (frame.left + frame.width + 16.0, frame.top + 8.0 + 20.0 * i as f64);
        let name = escape(&cloud.name);
        let _ = write!(svg, r#"<circle cx="{x:.1}" cy="{:.1}" r="4" style="fill:{colour}"/>"#, y - 4.0);
        let _ = write!(svg, r#"<text x="{:.1}" y="{y:.1}">{name}</text>"#, x + 10.0);
    }
    svg.push_str("</svg>");
    svg
}

/// `most`, or 1 where there is nothing to draw: an axis has to have a length.
fn some(most: f64) -> f64 {
    if most > 0.0 { most } else { 1.0 }
}

/// Round values from 0 to `right`, five or so, with as many digits as tell them apart.
fn ticks(right: f64) -> Vec<(f64, String)> {
    let power = (right / 5.0).log10().floor() as i32;
    let steps = [(1.0, power), (2.0, power), (5.0, power), (1.0, power + 1)];
    let (lead, power) =
        steps.into_iter().find(|&(lead, power)| lead * 10f64.powi(power) * 6.0 > right).unwrap_or(steps[3]);
    let (step, digits) = (lead * 10f64.powi(power), (-power).max(0) as usize);
    (0..)
        .map(|i| f64::from(i) * step)
        .take_while(|&value| value <= right)
        .map(|v| (v, format!("{v:.digits$}")))
        .collect()
}

/// A drawing as a file of its own, with the colours the page would have given it.
pub fn standalone(svg: &str) -> String {
    let (head, body) = svg.split_once('>').unwrap_or((svg, ""));
    let style = "svg{--accent:#6d4aa8;--soft:#6c6a78;--line:#e6e3ec;background:#fff}\
        @media (prefers-color-scheme:dark){svg{--accent:#a98be0;--soft:#9b98a9;--line:#322f3e;background:#16151c}}\
        text{fill:var(--soft);font:11px system-ui,sans-serif}.grid{stroke:var(--line);fill:none}\
        .curve{fill:none;stroke-width:1.8;stroke-linejoin:round;stroke-linecap:round}";
    format!("{head} xmlns=\"http://www.w3.org/2000/svg\"><style>{style}</style>{body}\n")
}

/// 0 for the first of `count`, 1 for the last.
fn share(index: usize, count: usize) -> f64 {
    if count < 2 { 1.0 } else { index as f64 / (count - 1) as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heights(svg: &str) -> Vec<f64> {
        svg.split("cy=\"").skip(1).filter_map(|rest| rest.split('"').next()?.parse().ok()).collect()
    }

    #[test]
    fn a_frontier_shows_what_lies_close_together() {
        let point = |&[x, y, deviation]: &[f64; 3]| Point { x, y, deviation, is_best: true, about: "a".into() };
        let cloud = |points: &[[f64; 3]]| Cloud { name: "a".into(), points: points.iter().map(point).collect() };
        let close = frontier("GMACs", &[cloud(&[[0.1, 0.567, 0.003], [0.25, 0.599, 0.006], [0.5, 0.61, 0.008]])]);
        assert!(close.contains(">0.56<") && close.contains(">0.62<") && !close.contains("end\">0.00<"), "{close}");
        let points = &heights(&close)[..3];
        assert!(points[0] - points[2] > 100.0, "{points:?} of 250");
        assert!(points.iter().all(|y| (20.0..=270.0).contains(y)), "{points:?}");
        // From nothing to everything, and nothing at all.
        let wide = frontier("GMACs", &[cloud(&[[0.1, 0.003, 0.0], [0.5, 0.6, 0.0]])]);
        assert!(wide.contains("end\">0.00<") && wide.contains(">0.60<"), "{wide}");
        assert!(!frontier("GMACs", &[cloud(&[[0.1, 0.5, 0.0]]), cloud(&[])]).contains("NaN"));
        assert!(!frontier("GMACs", &[]).contains("NaN"));
    }

    #[test]
    fn ticks_are_round_and_told_apart() {
        let told = |right: f64| ticks(right).into_iter().map(|(_, text)| text).collect::<Vec<_>>().join(" ");
        assert_eq!(told(0.0268), "0.000 0.005 0.010 0.015 0.020 0.025");
        assert_eq!(told(0.558), "0.0 0.1 0.2 0.3 0.4 0.5");
        assert_eq!(told(13.0), "0 5 10");
        for right in [1e-9, 0.011, 0.0999, 1.0, 1.9, 29.0, 31.0, 4e6] {
            let ticks = ticks(right);
            assert!((3..=7).contains(&ticks.len()), "{right}: {ticks:?}");
            let step = ticks[1].0;
            for (i, (value, text)) in ticks.iter().enumerate() {
                let read: f64 = text.parse().unwrap();
                assert!(
                    (read - value).abs() < 1e-6 * step && (value - i as f64 * step).abs() < 1e-6 * step,
                    "{ticks:?}"
                );
            }
            assert!(right - ticks[ticks.len() - 1].0 < step, "{right}: {ticks:?}");
        }
    }
}
