//! The sections of a `.cfg` Prunella knows and every key Darknet knows in them, so that a slip of the pen is no default.

use super::cfg::{Section, short};
use crate::Result;

/// A kind of section; keys are separated by white space.
struct Kind {
    /// Its name, and Darknet's other names for it.
    names: &'static [&'static str],
    /// Keys that decide what the section computes; the loader reads or refuses each.
    read: &'static str,
    /// Keys that matter to Darknet's training, its drawing or its suppression of boxes alone.
    ignored: &'static str,
}

/// Keys Darknet takes in any layer, all about its training.
const EVERY_LAYER: &str =
    "burnin_update clip dont_update dontsave learning_rate onlyforward stopbackward train_only_bn";

const KINDS: &[Kind] = &[
    Kind {
        names: &["net", "network"],
        read: "width height channels",
        ignored: "B1 B2 adam adversarial_lr angle aspect attention augment_speed badlabels_reject_threshold \
            badlabels_rejection_percentage batch batches_cycle_mult batches_per_cycle blur burn_in center \
            clip contrastive contrastive_color contrastive_jit_flip cutmix decay dynamic_minibatch \
            ema_alpha eps equidistant_point exposure flip gamma gaussian_noise hue \
            init_sequential_subdivisions inputs label_smooth_eps learning_rate learning_rate_min letter_box \
            loss_scale max_batches max_chart_loss max_crop max_ratio min_crop min_ratio mixup momentum \
            mosaic mosaic_bound notruth num_sigmas_reject_badlabels optimized_memory policy power random \
            reject_threshold resize_step rewritten_bbox saturation scale scales seq_scales \
            sequential_subdivisions show_receptive_field step steps subdivisions time_steps track \
            try_fix_nan unsupervised use_cuda_graph workspace_size_limit_MB",
    },
    Kind {
        names: &["convolutional", "conv"],
        read: "activation antialiasing assisted_excitation batch_normalize bin_output binary cbn deform \
            dilation dontload dontloadscales filters flipped groups pad padding reverse rotate share_index \
            size stretch stretch_sway stride stride_x stride_y sway xnor",
        ignored: "angle dot grad_centr",
    },
    Kind {
        names: &["maxpool", "max"],
        read: "antialiasing maxpool_depth padding size stride stride_x stride_y",
        ignored: "out_channels",
    },
    Kind { names: &["upsample"], read: "scale stride", ignored: "" },
    Kind { names: &["route", "concat"], read: "group_id groups layers", ignored: "stream" },
    Kind {
        names: &["shortcut"],
        read: "activation from weights_type",
        // The second is Darknet's own slip. Neither means anything without weights, which are refused.
        ignored: "weights_normalization weights_normalizion",
    },
    Kind { names: &["dropout"], read: "", ignored: "dropblock dropblock_size_abs dropblock_size_rel probability" },
    Kind {
        names: &["yolo"],
        read: "anchors classes mask new_coords num scale_x_y",
        ignored: "beta_nms cls_normalizer counters_per_class delta_normalizer dets_for_show dets_for_track \
            embedding_layer focal_loss ignore_thresh iou_loss iou_normalizer iou_thresh iou_thresh_kind \
            jitter label_smooth_eps map max max_delta nms_kind obj_normalizer objectness_smooth random \
            resize show_details sim_thresh track_ciou_norm track_history_size truth_thresh",
    },
];

/// Checks a section's name and its keys: all known, none twice.
pub(super) fn check(section: &Section) -> Result<()> {
    let Some(kind) = KINDS.iter().find(|k| k.names.contains(&section.name.as_str())) else {
        let known: Vec<String> = KINDS.iter().map(|k| format!("[{}]", k.names[0])).collect();
        return Err(section
            .error(format!("the section `[{}]` is not supported", short(&section.name)))
            .hint(format!("known are {}", known.join(", "))));
    };
    let net = kind.names[0] == "net";
    let known =
        || [kind.read, kind.ignored, if net { "" } else { EVERY_LAYER }].into_iter().flat_map(str::split_whitespace);
    let mut seen: Vec<&str> = vec![];
    for (key, line) in section.keys() {
        if !known().any(|k| k == key) {
            let hint = match nearest(key, known()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if kind.read.is_empty() => format!("`[{}]` needs no key; delete the line", section.name),
                None => format!("what `[{}]` computes is decided by {}", section.name, kind.read.replace(' ', ", ")),
            };
            return Err(section.error_on(line, format!("the key `{}` is not known here", short(key))).hint(hint));
        }
        if seen.contains(&key) {
            return Err(section
                .error_on(line, format!("the key `{key}` is given twice"))
                .hint("one of the two lines is meant; delete the other"));
        }
        seen.push(key);
    }
    Ok(())
}

/// The known key that takes fewest edits to reach, where they are few for a word of its length.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Longer than any key: nothing is near, and the distance would cost time on hostile lines.
    if key.len() > 64 {
        return None;
    }
    known.map(|k| (edits(key, k), k)).min().filter(|(n, k)| *n <= (k.len() / 3).max(1)).map(|(_, k)| k)
}

/// Insertions, deletions, replacements and swaps of neighbours that lead from `a` to `b`, case aside (optimal string
/// alignment).
fn edits(a: &str, b: &str) -> usize {
    let [a, b] = [a, b].map(|text| text.to_lowercase().chars().collect::<Vec<char>>());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(row[j - 1] + 1).min(rows[i - 1][j] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
