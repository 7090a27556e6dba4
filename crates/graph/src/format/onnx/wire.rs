//! Counting what an ONNX file is made of before it is decoded: two bytes of a file can become an object of a hundred.

/// Most nodes, weights, attributes and words of a file; the largest detectors have some ten thousand.
const MOST: usize = 1 << 19;

/// Field numbers of the messages within a message, with what is in them.
struct Message(&'static [(u64, Message)]);

const LEAF: Message = Message(&[]);
const TENSOR: Message = Message(&[(13, LEAF)]);
const VALUE: Message = Message(&[(2, Message(&[(1, Message(&[(2, LEAF)]))]))]);
const NODE: Message = Message(&[(5, Message(&[(5, TENSOR)]))]);
const MODEL: Message = Message(&[(7, Message(&[(1, NODE), (5, TENSOR), (11, VALUE), (12, VALUE)]))]);

/// Refuses a file with more parts than any detector.
pub fn check(bytes: &[u8]) -> Result<(), String> {
    let mut left = MOST;
    match count(bytes, &MODEL, &mut left) {
        Some(()) => Ok(()),
        None => Err(format!("has more than {MOST} parts, more than any detector")),
    }
}

/// Takes the length-delimited fields of `bytes` and of known messages within off `left`; `None` once there are too many.
/// Stops silently at what is malformed: decoding says it better.
fn count(mut bytes: &[u8], message: &Message, left: &mut usize) -> Option<()> {
    while !bytes.is_empty() {
        let Some(key) = varint(&mut bytes) else { return Some(()) };
        let skip = match key & 7 {
            0 => {
                if varint(&mut bytes).is_none() {
                    return Some(());
                }
                continue;
            }
            1 => 8,
            5 => 4,
            2 => match varint(&mut bytes).and_then(|len| usize::try_from(len).ok()) {
                Some(len) => len,
                None => return Some(()),
            },
            // Groups, long out of use: what is in them is counted as if it stood here.
            3 | 4 => continue,
            _ => return Some(()),
        };
        let Some((field, rest)) = bytes.split_at_checked(skip) else { return Some(()) };
        bytes = rest;
        if key & 7 == 2 {
            *left = left.checked_sub(1)?;
            if let Some((_, inner)) = message.0.iter().find(|(number, _)| *number == key >> 3) {
                count(field, inner, left)?;
            }
        }
    }
    Some(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for i in 0..10 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
