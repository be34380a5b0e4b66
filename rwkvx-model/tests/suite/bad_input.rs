//! Files that are not in order: every one an error that names the file and what is wrong, none a panic.

use std::path::PathBuf;

use rwkvx_model::Error;
use rwkvx_model::checkpoint::{self, LoadOptions, Metadata};

use crate::checkpoint::published;
use crate::support::pth::{PthTensor, archive, pth, state_dict};
use crate::support::{Flex, data, golden_model};

/// A folder with one file in it.
struct Place {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Place {
    fn with(bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.ckpt");
        std::fs::write(&path, bytes).unwrap();
        Self {
            _folder: folder,
            path,
        }
    }
}

/// The error of loading a file of these bytes; its text names the file.
fn error_of(bytes: &[u8]) -> Error {
    let place = Place::with(bytes);
    let loaded =
        checkpoint::load::<Flex>(&place.path, &LoadOptions::default(), &Default::default());
    let error = loaded.map(|_| ()).expect_err("a bad file loaded");
    assert!(error.to_string().contains("model.ckpt"), "{error}");
    assert!(error.to_string().lines().count() <= 2, "{error}");
    error
}

#[track_caller]
fn assert_error(case: &str, bytes: &[u8], named: &str) {
    let error = error_of(bytes).to_string();
    assert!(
        error.contains(named),
        "{case}: `{error}` does not name `{named}`"
    );
}

/// A golden model as safetensors.
fn safetensors() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    checkpoint::save(
        &golden_model::<Flex>("rwkvx_tiny.pth"),
        &Metadata::default(),
        &path,
    )
    .unwrap();
    std::fs::read(path).unwrap()
}

/// A safetensors file of this header and so many bytes of data.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// The safetensors file with a text of its header replaced by another of the same length.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes
        .windows(from.len())
        .position(|window| window == from.as_bytes())
        .expect(from);
    let mut bytes = bytes.to_vec();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    bytes
}

#[test]
fn files_of_no_kind_are_named_as_such() {
    for (case, bytes) in [
        ("empty", &b""[..]),
        ("short", b"PK"),
        ("text", b"this is no checkpoint, it is a sentence"),
        ("zeros", &[0; 4096]),
        (
            "noise",
            &std::array::from_fn::<u8, 4096, _>(|i| (i * 167 + i / 7) as u8),
        ),
    ] {
        assert_error(case, bytes, "neither");
    }
    assert_error(
        "old PyTorch",
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.",
        "older than 1.6",
    );
}

#[test]
fn missing_files_and_folders_are_named() {
    let load = |path: &std::path::Path| {
        let loaded = checkpoint::load::<Flex>(path, &LoadOptions::default(), &Default::default());
        loaded.map(|_| ()).unwrap_err().to_string()
    };
    assert!(load("/no/such/file.pth".as_ref()).starts_with("/no/such/file.pth: "));
    let folder = tempfile::tempdir().unwrap();
    assert!(load(folder.path()).contains("is a folder"));
}

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
fn safetensors_cut_off_anywhere_are_an_error() {
    let whole = safetensors();
    for length in (0..whole.len())
        .step_by(whole.len() / 97)
        .chain(0..20)
        .chain([whole.len() - 1])
    {
        error_of(&whole[..length]);
    }
    let longer = [whole.as_slice(), &[0]].concat();
    assert_error("one byte more", &longer, "truncated or damaged");
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
fn damage_anywhere_in_the_structure_is_an_error_or_harmless_but_no_panic() {
    for whole in [
        std::fs::read(data("rwkv7_tiny.pth")).unwrap(),
        safetensors(),
    ] {
        // The pickle and the header are at the start, the zip's directory at the end.
        let places = (0..6000)
            .step_by(13)
            .chain((whole.len() - 9000..whole.len()).step_by(29));
        for at in places {
            let mut bytes = whole.clone();
            bytes[at] = bytes[at].wrapping_add(0x55);
            let place = Place::with(&bytes);
            let _ = checkpoint::inspect::<Flex>(&place.path, &LoadOptions::default());
        }
    }
}

#[test]
fn safetensors_headers_that_lie_are_errors() {
    let huge = u64::MAX.to_le_bytes();
    assert_error(
        "huge header",
        &[&huge[..], b"{}      "].concat(),
        "header claims",
    );
    let large = 99_000_000u64.to_le_bytes();
    assert_error(
        "large header",
        &[&large[..], b"{}      "].concat(),
        "header claims",
    );
    assert_error(
        "no JSON",
        &with_header("{\"a\": nonsense", 0),
        "damaged safetensors header",
    );
    assert_error("empty", &with_header("{}", 0), "emb.weight");
    let tensor = |shape: &str, offsets: &str| {
        format!(r#"{{"emb.weight":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    assert_error(
        "shape past data",
        &with_header(&tensor("[8,8]", "[0,4]"), 4),
        "damaged safetensors header",
    );
    assert_error(
        "offsets past file",
        &with_header(&tensor("[8,8]", "[0,256]"), 4),
        "truncated or damaged",
    );
    let overflow = tensor("[4294967296,4294967296,4294967296]", "[0,4]");
    assert_error(
        "overflowing shape",
        &with_header(&overflow, 4),
        "damaged safetensors header",
    );
    let huge_offsets = tensor("[4611686018427387904]", "[0,18446744073709551615]");
    assert_error(
        "huge offsets",
        &with_header(&huge_offsets, 4),
        "damaged safetensors header",
    );
    assert_error(
        "not a matrix",
        &with_header(&tensor("[8]", "[0,32]"), 32),
        "expected 2 axes",
    );
    assert_error(
        "our entry",
        &with_header(r#"{"__metadata__":{"rwkvx":"{"}}"#, 0),
        "`rwkvx` entry",
    );
}

#[test]
fn safetensors_that_contradict_their_own_configuration_are_errors() {
    let whole = safetensors();
    assert_error(
        "layers",
        &replaced(&whole, r#"n_layer\":4"#, r#"n_layer\":2"#),
        "it says it is",
    );
    assert_error(
        "top-k",
        &replaced(&whole, r#"top_k\":3"#, r#"top_k\":0"#),
        "top_k",
    );
}

#[test]
fn foreign_number_formats_are_named() {
    let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
    for (tensor, (storage, size)) in tensors.iter_mut().zip([("DoubleStorage", 8)]) {
        tensor.storage = storage;
        tensor.bytes = vec![0; size * tensor.length as usize];
    }
    let error = error_of(&pth(&tensors));
    assert!(
        matches!(&error, Error::TensorDtype { name, found, .. }
        if name == "emb.weight" && found == "DoubleStorage"),
        "{error}"
    );
}

/// The file with one tensor changed.
fn changed(name: &str, change: impl Fn(&mut PthTensor)) -> Vec<u8> {
    let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
    change(
        tensors
            .iter_mut()
            .find(|tensor| tensor.name == name)
            .expect(name),
    );
    pth(&tensors)
}

#[test]
fn missing_tensors_are_named_with_their_shape() {
    for (name, shape) in [
        ("blocks.2.att.w0", vec![1, 1, 64]),
        ("blocks.1.ffn.key.weight", vec![256, 64]),
        ("head.weight", vec![97, 64]),
        ("blocks.0.ln0.bias", vec![64]),
    ] {
        let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
        tensors.retain(|tensor| tensor.name != name);
        let error = error_of(&pth(&tensors));
        assert!(
            matches!(&error, Error::MissingTensor { name: missing, expected, others: 0, .. }
            if missing == name && *expected == shape),
            "{error}"
        );
    }
    let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
    tensors.retain(|tensor| !tensor.name.starts_with("blocks.1."));
    assert_error(
        "a whole block",
        &pth(&tensors),
        "recurrent block 1 is missing",
    );
    let mut tensors = published(&golden_model("rwkvx_tiny.pth"));
    tensors.retain(|tensor| !tensor.name.starts_with("moba.0."));
    assert_error("a whole sparse block", &pth(&tensors), "sparse block 0");
    let mut tensors = published(&golden_model("rwkvx_tiny.pth"));
    tensors.retain(|tensor| tensor.name != "moba.1.ln1.bias");
    assert_error(
        "of a sparse block",
        &pth(&tensors),
        "`moba.1.ln1.bias` [64] is missing",
    );
}

#[test]
fn extra_tensors_are_named() {
    for name in [
        "blocks.1.att.extra",
        "emb.bias",
        "blocks.2.att.v3",
        "module.emb.weight",
        "moba.x.ln1.bias",
    ] {
        let mut tensors = published(&golden_model("rwkv7_tiny.pth"));
        tensors.push(PthTensor::f32(name, &[2, 3], &[0.0; 6]));
        let error = error_of(&pth(&tensors));
        assert!(
            matches!(&error, Error::UnexpectedTensor { name: extra, found, others: 0, .. }
            if extra == name && found[..] == [2, 3]),
            "{error}"
        );
    }
}

#[test]
fn misshapen_tensors_are_named_with_both_shapes() {
    let cases: [(&str, &[usize], &[usize]); 5] = [
        ("head.weight", &[96, 64], &[97, 64]),
        ("blocks.1.att.x_r", &[1, 64, 1], &[1, 1, 64]),
        ("blocks.2.att.w2", &[64, 32], &[32, 64]),
        ("blocks.0.ffn.value.weight", &[256, 64], &[64, 256]),
        ("ln_out.bias", &[1, 1, 64], &[64]),
    ];
    for (name, shape, expected) in cases {
        let values = vec![0.0; shape.iter().product()];
        let error = error_of(&changed(name, |tensor| {
            *tensor = PthTensor::f32(name, shape, &values)
        }));
        assert!(
            matches!(&error, Error::TensorShape { name: bad, expected: wanted, found, .. }
            if bad == name && wanted == expected && found == shape),
            "{error}"
        );
    }
    assert_error(
        "head size",
        &changed("blocks.0.att.r_k", |t| t.shape = vec![64, 0]),
        "head_size",
    );
    assert_error(
        "heads",
        &changed("blocks.0.att.r_k", |t| t.shape = vec![2, 32]),
        "blocks.1.att.r_k",
    );
}

#[test]
fn tensors_that_reach_past_their_storage_are_errors() {
    let name = "blocks.1.att.receptance.weight";
    let cases: [(&str, fn(&mut PthTensor), &str); 7] = [
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

#[test]
fn impossible_options_are_errors() {
    for options in [
        LoadOptions {
            chunk_size: Some(0),
            top_k: None,
        },
        LoadOptions {
            chunk_size: None,
            top_k: Some(0),
        },
    ] {
        let loaded =
            checkpoint::load::<Flex>(&data("rwkvx_tiny.pth"), &options, &Default::default());
        assert!(loaded.map(|_| ()).unwrap_err().to_string().contains("is 0"));
    }
}

#[test]
fn a_save_that_fails_leaves_the_old_file_and_no_other() {
    let model = golden_model::<Flex>("rwkv7_tiny.pth");
    let place = Place::with(b"the old file");
    let blocked = place.path.join("model.safetensors");
    let error = checkpoint::save(&model, &Metadata::default(), &blocked).unwrap_err();
    assert!(error.to_string().contains("model.safetensors"), "{error}");
    // A folder where the file should go: everything is written, and the renaming fails.
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("model.safetensors");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("kept"), b"").unwrap();
    checkpoint::save(&model, &Metadata::default(), &target).unwrap_err();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert!(target.join("kept").exists());
}
