//! Text that fits the terminal: names that are cut and still told apart, sentences that are broken between words.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use console::measure_text_width;

/// `names` in at most `width` terminal columns each. Longer ones lose what they all begin with, up to a dot, and then the part without
/// which most of them are still told apart, the middle where that is all the same.
pub fn shortened(names: &[&str], width: usize) -> Vec<String> {
    let long: Vec<&str> = names.iter().copied().filter(|name| measure_text_width(name) > width).collect();
    if long.is_empty() {
        return names.iter().map(ToString::to_string).collect();
    }
    let begin = if width > 1 { shared_beginning(&long) } else { 0 };
    let short = |name: &&str, head: usize| match measure_text_width(name) > width {
        false => (*name).to_owned(),
        true if begin == 0 => cut(name, width, head),
        true => format!("…{}", cut(&name[begin..], width - 1, head)),
    };
    let tries = (0..width.max(1)).map(|head| (head, names.iter().map(|name| short(name, head)).collect::<Vec<_>>()));
    let told_apart = |tried: &[String]| tried.iter().collect::<BTreeSet<_>>().len();
    let middle = width.saturating_sub(1) / 2;
    let best = tries.max_by_key(|(head, tried)| (told_apart(tried), Reverse(head.abs_diff(middle))));
    best.map_or(vec![], |(_, tried)| tried)
}

/// Bytes of what all of several `names` begin with, up to a dot.
fn shared_beginning(names: &[&str]) -> usize {
    let [first, others @ ..] = names else { return 0 };
    let alike = |other: &&str| first.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let shared = others.iter().map(alike).min().unwrap_or(0);
    first.as_bytes()[..shared].iter().rposition(|&byte| byte == b'.').map_or(0, |dot| dot + 1)
}

/// `text` in at most `width` terminal columns: an ellipsis takes the place of what comes after the first `head` and does not fit.
fn cut(text: &str, width: usize, head: usize) -> String {
    if measure_text_width(text) <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let head = beginning(text.chars(), head.min(room));
    let tail = beginning(text.chars().rev(), room - measure_text_width(&head));
    head.chars().chain(['…']).chain(tail.chars().rev()).collect()
}

/// As many of `chars` as `width` terminal columns hold.
fn beginning(chars: impl Iterator<Item = char>, width: usize) -> String {
    let mut left = width;
    let fits = |c: &char| {
        let wide = measure_text_width(c.encode_utf8(&mut [0; 4]));
        left.checked_sub(wide).map(|rest| left = rest).is_some()
    };
    chars.take_while(fits).collect()
}

/// `text` with lines of at most `width` terminal columns, broken between words where there are any.
pub fn wrapped(text: &str, width: usize) -> String {
    let mut lines = vec![];
    for line in text.lines() {
        let (mut kept, mut columns) = (String::new(), 0);
        for word in line.split_inclusive(' ') {
            if columns > 0 && columns + measure_text_width(word.trim_end()) > width {
                lines.push(std::mem::take(&mut kept).trim_end().to_owned());
                columns = 0;
            }
            kept.push_str(word);
            columns += measure_text_width(word);
        }
        lines.push(kept);
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_keeps_both_ends_and_no_character_is_split() {
        let alone = |name, width| shortened(&[name], width).remove(0);
        assert_eq!(alone("model.9.cv1", 20), "model.9.cv1");
        assert_eq!(alone("model.24.m.0.conv", 9), "mode…conv");
        assert_eq!(alone("血球検出モデル", 7), "血…デル");
        assert_eq!(alone("abc", 1), "…");
        assert_eq!(alone("abc", 0), "");
        for width in 0..30 {
            assert!(measure_text_width(&alone("naïve 血球 model.24", width)) <= width);
        }
    }

    #[test]
    fn names_are_told_apart_as_long_as_they_can_be() {
        let names = ["images", "model.2.m.0.cv1.conv", "model.2.m.0.cv2.conv", "model.4.m.0.cv1.conv"];
        assert_eq!(shortened(&names, 20), names);
        assert_eq!(shortened(&names, 15), ["images", "…2.m.0.cv1.conv", "…2.m.0.cv2.conv", "…4.m.0.cv1.conv"]);
        assert_eq!(shortened(&names, 12)[1..], ["…2.m.…1.conv", "…2.m.…2.conv", "…4.m.…1.conv"]);
        assert_eq!(shortened(&["detector.layer7", "detector.layer77"], 8), ["…layer7", "…layer77"]);
        assert_eq!(shortened(&[], 8), [""; 0]);
    }

    #[test]
    fn long_lines_break_between_words() {
        let text = "Refitted 57 convolutions\n  healed   1/25";
        assert_eq!(wrapped(text, 80), text);
        assert_eq!(wrapped(text, 14), "Refitted 57\nconvolutions\n  healed\n1/25");
        assert_eq!(wrapped("see `a/long/path` for more", 10), "see\n`a/long/path`\nfor more");
        assert_eq!(wrapped("", 10), "");
    }
}
