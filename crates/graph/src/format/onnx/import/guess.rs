//! The heads that the shapes of maps and output allow, with what is read off the file's decoding.

use super::expected::Layout;
use super::head::{Level, Trial};
use crate::{AnchorHead, AnchorLevel, BoxDecode, DflHead, Head, Result, YoloxHead};

/// A head, the maps of the cut in the order it reads them, and how the output presents it.
pub type Guess = (Head, Vec<usize>, Layout);

/// All heads worth trying, likeliest first.
pub fn heads(trial: &mut Trial) -> Result<Vec<Guess>> {
    let per_level = trial.levels.first().map_or(0, |l| l.maps.len());
    if trial.levels.iter().any(|l| l.maps.len() != per_level) {
        return Ok(vec![]);
    }
    match per_level {
        1 => anchors(trial),
        2 => Ok(distributions(trial)),
        3 => Ok(yolox(trial)),
        _ => Ok(vec![]),
    }
}

/// Strides in the order of the levels.
fn strides(levels: &[Level]) -> Vec<usize> {
    levels.iter().map(|l| l.stride).collect()
}

/// `order` applied to the maps of every level.
fn ordered(levels: &[Level], order: &[usize]) -> Vec<usize> {
    levels.iter().flat_map(|l| order.iter().map(|&i| l.maps[i])).collect()
}

fn distributions(trial: &Trial) -> Vec<Guess> {
    let Some(classes) = trial.output[0].checked_sub(4).filter(|&n| n > 0) else { return vec![] };
    let channels = |i: usize| trial.shapes[trial.levels[0].maps[i]].c;
    let guess = |[boxes, class]: [usize; 2]| {
        let fits = channels(class) == classes && channels(boxes).is_multiple_of(4);
        let head = DflHead::new(classes, channels(boxes) / 4, strides(&trial.levels));
        fits.then(|| (Head::Dfl(head), ordered(&trial.levels, &[boxes, class]), Layout::Decoded))
    };
    [[0, 1], [1, 0]].into_iter().filter_map(guess).collect()
}

fn yolox(trial: &Trial) -> Vec<Guess> {
    let Some(classes) = trial.output[1].checked_sub(5).filter(|&n| n > 0) else { return vec![] };
    let channels = |i: usize| trial.shapes[trial.levels[0].maps[i]].c;
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let fitting = orders.into_iter().filter(|&[b, o, c]| [channels(b), channels(o), channels(c)] == [4, 1, classes]);
    let head = Head::Yolox(YoloxHead { classes, strides: strides(&trial.levels) });
    fitting
        .flat_map(|order| [(order, Layout::Undecoded), (order, Layout::Decoded)])
        .map(|(order, layout)| (head.clone(), ordered(&trial.levels, &order), layout))
        .collect()
}

/// Anchors are what comes out as width and height where the network says nothing, the scale of the centre is how far it
/// moves where the network is certain.
fn anchors(trial: &mut Trial) -> Result<Vec<Guess>> {
    let [rows, columns] = trial.output;
    let channels: Vec<usize> = trial.shapes.iter().map(|s| s.c).collect();
    let fits = columns > 5 && channels.iter().all(|c| c.is_multiple_of(columns));
    let anchors_of = |level: &Level| channels[level.maps[0]] / columns.max(1);
    let count = trial
        .levels
        .iter()
        .fold(0_usize, |sum, l| sum.saturating_add(anchors_of(l).saturating_mul(l.shape.h * l.shape.w)));
    if !fits || count != rows {
        return Ok(vec![]);
    }
    let squashed: Vec<bool> = (0..channels.len()).map(|i| trial.is_squashed(i)).collect();
    // Past a sigmoid, "nothing" is one half and "certain" one.
    let silent = trial.run(|i| if squashed[i] { 0.5 } else { 0.0 })?;
    let certain = trial.run(|i| if squashed[i] { 1.0 } else { 20.0 })?;
    let (Ok(silent), Ok(certain)) = (silent.as_floats(), certain.as_floats()) else { return Ok(vec![]) };
    let all_squashed = squashed.iter().all(|&s| s);
    let mut row = 0;
    let (mut v5, mut darknet) = (Vec::new(), Vec::new());
    for level in &trial.levels {
        let plane = level.shape.h * level.shape.w;
        let first = |i: usize| (row + i * plane) * columns;
        let anchors: Vec<[f32; 2]> =
            (0..anchors_of(level)).map(|i| [silent[first(i) + 2], silent[first(i) + 3]]).collect();
        // The centre of the first cell is at ((scale + 1) / 2) strides; ours are written with four digits at most.
        let scale = 2.0 * certain[first(0)] / level.stride as f32 - 1.0;
        let scale_xy = (scale * 1e4).round() / 1e4;
        if anchors.iter().flatten().any(|side| !side.is_finite() || *side <= 0.0) || !(0.1..10.0).contains(&scale_xy) {
            return Ok(vec![]);
        }
        row += anchors.len() * plane;
        let (stride, decode) = (level.stride, BoxDecode::V5);
        v5.push(AnchorLevel { stride, anchors: anchors.clone(), decode });
        let decode = if all_squashed { BoxDecode::DarknetNew { scale_xy } } else { BoxDecode::Darknet { scale_xy } };
        darknet.push(AnchorLevel { stride, anchors, decode });
    }
    let order = ordered(&trial.levels, &[0]);
    let mut guesses = vec![];
    for levels in if all_squashed { vec![darknet] } else { vec![v5, darknet] } {
        let head = Head::Anchor(AnchorHead { classes: columns - 5, levels });
        guesses.push((head, order.clone(), Layout::Decoded));
    }
    Ok(guesses)
}
