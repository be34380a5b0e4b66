//! `.pth` files whose archive or pickle is not in order.

use super::tensors::changed;
use super::{assert_error, error_of};
use crate::checkpoint::published;
use crate::support::pth::{PthTensor, archive, state_dict};
use crate::support::{data, golden_model};

#[test]
fn a_pth_cut_off_anywhere_is_an_error() {
    let whole = std::fs::read(data("rwkv7_tiny.pth")).unwrap();
    for length in (0..whole.len())
        .step_by(whole.len() / 97)
        .chain(whole.len() - 30..whole.len())
    {
        error_of(&whole[..length]);
    }
}

#[test]
fn flipped_bytes_of_weights_in_a_pth_are_an_error() {
    let whole = std::fs::read(data("rwkv7_tiny.pth")).unwrap();
    for at in [whole.len() / 4, whole.len() / 2, whole.len() * 3 / 4] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        assert_error("flipped", &bytes, "hecksum");
    }
}

#[test]
fn tensors_that_reach_past_their_storage_are_errors() {
    let name = "blocks.1.att.receptance.weight";
    type Case = (&'static str, fn(&mut PthTensor), &'static str);
    let cases: [Case; 7] = [
        ("offset", |t| t.offset = 1, "past its storage"),
        ("huge offset", |t| t.offset = i64::MAX, "past its storage"),
        (
            "huge stride",
            |t| t.strides = vec![i64::MAX, 1],
            "past its storage",
        ),
        (
            "expanded",
            |t| (t.length, t.strides, t.bytes) = (1, vec![0, 0], vec![0; 4]),
            "past its storage",
        ),
        ("negative", |t| t.offset = -1, "-1 is no size"),
        (
            "storage shorter than claimed",
            |t| t.bytes.truncate(100),
            "its storage has 100 bytes",
        ),
        ("huge storage", |t| t.length = i64::MAX, "its storage has"),
    ];
    for (case, change, named) in cases {
        assert_error(case, &changed(name, change), named);
    }
    let huge = changed("emb.weight", |t| t.shape = vec![1 << 40, 64]);
    assert_error("huge vocabulary", &huge, "vocab_size");
    let tensors = published(&golden_model("rwkv7_tiny.pth"));
    assert_error(
        "no storages",
        &archive(&state_dict(&tensors), &[]),
        "is not in the file",
    );
}

#[test]
fn pickles_that_are_no_state_dict_are_errors() {
    let cases: [(&str, &[u8], &str); 16] = [
        (
            "runs a command",
            b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
            "`os.system`",
        ),
        (
            "builds an object",
            b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
            "`builtins.eval`",
        ),
        (
            "new object",
            b"\x80\x02ca\nb\n)\x81.",
            "unknown instruction 0x81",
        ),
        ("a list", b"\x80\x02].", "not a dictionary"),
        (
            "a text key of a number",
            b"\x80\x02}K\x01K\x02s.",
            "no text",
        ),
        (
            "a number",
            b"\x80\x02}X\x05\x00\x00\x00epochK\x02s.",
            "entry `epoch` is not a tensor",
        ),
        ("nothing", b"", "truncated"),
        ("no end", b"\x80\x02}", "truncated"),
        ("huge text", b"\x80\x02X\xff\xff\xff\xff", "truncated"),
        (
            "huge long text",
            b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff",
            "truncated",
        ),
        ("huge integer", b"\x80\x02\x8a\xff", "too large"),
        ("empty stack", b"\x80\x02.", "takes more than it has"),
        ("unopened", b"\x80\x02t.", "has not opened"),
        ("unremembered", b"\x80\x02h\x07.", "has not remembered"),
        ("storage of nothing", b"\x80\x02)Q.", "other than a storage"),
        ("text after the end of a line", b"\x80\x02cos", "truncated"),
    ];
    for (case, pickle, named) in cases {
        assert_error(case, &archive(pickle, &[]), named);
    }
    // A million tuples inside each other must not exhaust the stack, in reading or in dropping.
    let deep = [b"\x80\x02)".to_vec(), vec![0x85; 1_000_000], b".".to_vec()].concat();
    assert_error("deep", &archive(&deep, &[]), "not a dictionary");
    // Remembering an object once per instruction must not copy it: this list doubles 60 times.
    let bomb = [
        b"\x80\x02]q\x00".to_vec(),
        b"h\x00h\x00\x86q\x00".repeat(60),
        b".".to_vec(),
    ]
    .concat();
    assert_error("bomb", &archive(&bomb, &[]), "not a dictionary");
}

#[test]
fn a_zip_of_something_else_is_named() {
    use std::io::{Cursor, Write};

    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(
        "readme.txt",
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored),
    )
    .unwrap();
    zip.write_all(b"hello").unwrap();
    assert_error(
        "zip",
        &zip.finish().unwrap().into_inner(),
        "without data.pkl",
    );
}
