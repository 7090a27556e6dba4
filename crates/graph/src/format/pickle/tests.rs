//! Pickles written by hand, good and hostile.

use super::{Fault, Pickle, Value};

fn fault(bytes: &[u8]) -> Fault {
    Pickle::decode(bytes).expect_err("this pickle must not decode")
}

#[test]
fn values_of_protocol_2() {
    // pickle.dumps({"a": [1, -2, 2.5, None, True], "b": (1 << 40, b"x")}, 2), but for the bytes
    let bytes =
        b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01]q\x02(K\x01J\xfe\xff\xff\xffG@\x04\x00\x00\x00\x00\x00\x00N\x88e\
                  X\x01\x00\x00\x00bq\x03\x8a\x06\x00\x00\x00\x00\x00\x01C\x01x\x86q\x04u.";
    let pickle = Pickle::decode(bytes).unwrap();
    let [one, minus, real, none, yes] = pickle.root().key("a").unwrap().array().unwrap();
    assert_eq!((one.int(), minus.int(), real.float()), (Some(1), Some(-2), Some(2.5)));
    assert_eq!((none.is_none(), yes.bool()), (true, Some(true)));
    let [big, raw] = pickle.root().key("b").unwrap().array().unwrap();
    assert_eq!((big.int(), raw.value()), (Some(1 << 40), &Value::Bytes(b"x".to_vec())));
    assert_eq!((minus.index(), none.int()), (None, None));
}

#[test]
fn values_of_protocol_4() {
    // A frame, memoised short strings, STACK_GLOBAL and a set.
    let bytes =
        b"\x80\x04\x95\x30\x00\x00\x00\x00\x00\x00\x00\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94\
                  \x8c\x01k\x94\x8f\x94(K\x07K\x08\x90s.";
    let pickle = Pickle::decode(bytes).unwrap();
    let [seven, eight] = pickle.root().key("k").unwrap().array().unwrap();
    assert_eq!((seven.int(), eight.int()), (Some(7), Some(8)));
}

#[test]
fn an_object_keeps_class_arguments_and_state() {
    let bytes = b"\x80\x02cmodels.common\nConv\n)\x81}X\x01\x00\x00\x00iK\x05sb.";
    let pickle = Pickle::decode(bytes).unwrap();
    assert_eq!(pickle.root().class(), Some(("models.common", "Conv")));
    assert_eq!(pickle.root().attr("i").unwrap().int(), Some(5));
}

#[test]
fn a_foreign_global_is_named_with_its_place() {
    let cases: [(&[u8], usize, &str); 4] = [
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.", 2, "`os.system`"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.", 17, "`posix.system`"),
        (b"\x80\x02Nc__builtin__\neval\n.", 3, "`__builtin__.eval`"),
        (b"\x80\x04\x8c\x06models\x8c\x09os.system\x93.", 21, "`models.os.system`"),
    ];
    for (bytes, offset, name) in cases {
        let fault = fault(bytes);
        assert_eq!(fault.offset, offset, "{name}: {}", fault.what);
        assert!(fault.what.contains(name) && fault.help.is_some(), "{}", fault.what);
    }
}

#[test]
fn neighbours_of_allowed_modules_are_foreign() {
    for module in ["torch.nn.modulesx", "torch.hub", "modelsx", "utilsx.common", "numpy.core", "torch._utils.x"] {
        let fault = fault(format!("c{module}\nload\n.").as_bytes());
        assert!(fault.what.contains(module), "{}", fault.what);
    }
}

#[test]
fn sizes_beyond_the_input_fail_before_they_are_allocated() {
    let huge: [&[u8]; 5] = [
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x04\x8e\x00\x00\x00\x00\x00\x01\x00\x00abc.",
        b"\x80\x02\x8b\xff\xff\xff\xff\x01.",
        b"\x80\x02cnever\nended",
    ];
    for bytes in huge {
        assert!(fault(bytes).what.contains("more are needed"), "{:?}", fault(bytes));
    }
}

#[test]
fn a_memo_bomb_stays_as_small_as_its_file() {
    // Forty lists, each holding the one before it twice: 2^40 elements for whoever walks them, 41 values here.
    let mut bytes = b"\x80\x02]q\x00".to_vec();
    for _ in 0..40 {
        bytes.extend_from_slice(b"]q\x01(h\x00h\x00eh\x01q\x00");
    }
    bytes.push(b'.');
    assert_eq!(Pickle::decode(&bytes).unwrap().values.len(), 41);
}

#[test]
fn a_list_may_hold_itself() {
    let pickle = Pickle::decode(b"\x80\x02]q\x00h\x00a.").unwrap();
    let [inner] = pickle.root().array().unwrap();
    assert_eq!(inner.id, pickle.root().id);
}

#[test]
fn deep_nesting_needs_no_stack() {
    let mut bytes = b"\x80\x02N".to_vec();
    bytes.extend(std::iter::repeat_n(0x85, 1_000_000));
    bytes.push(b'.');
    assert!(Pickle::decode(&bytes).is_ok());
}

#[test]
fn malformed_programs_are_refused() {
    let cases: [(&[u8], &str); 9] = [
        (b"", "ends after 0 bytes"),
        (b"\x80\x01.", "protocol 1"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02N(.", "empty stack"),
        (b"\x80\x02Ne.", "never opened"),
        (b"\x80\x02}(Nu.", "key without a value"),
        (b"\x80\x02h\x07.", "memo 7"),
        (b"\x80\x02NN\x86NR.", "no class"),
        (b"\x80\x02\xff.", "opcode 0xff"),
    ];
    for (bytes, what) in cases {
        assert!(fault(bytes).what.contains(what), "{bytes:?}: {}", fault(bytes).what);
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
        let _ = Pickle::decode(&bytes);
    }
}
