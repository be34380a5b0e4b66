//! A writer of `.pth` files, for files that PyTorch would not write.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// One tensor of a file to write.
#[derive(Clone)]
pub(crate) struct PthTensor {
    pub(crate) name: String,
    /// Name of the storage class, such as `FloatStorage`.
    pub(crate) storage: &'static str,
    /// The storage's bytes.
    pub(crate) bytes: Vec<u8>,
    /// Elements the pickle claims for the storage.
    pub(crate) length: i64,
    pub(crate) offset: i64,
    pub(crate) shape: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

impl PthTensor {
    /// A contiguous tensor of f32.
    pub(crate) fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let shape: Vec<i64> = shape.iter().map(|&size| size as i64).collect();
        let strides = (0..shape.len())
            .map(|axis| shape[axis + 1..].iter().product())
            .collect();
        Self {
            name: name.to_owned(),
            storage: "FloatStorage",
            bytes,
            length: values.len() as i64,
            offset: 0,
            shape,
            strides,
        }
    }
}

/// The pickle of a state dict, as `torch.save` writes it.
pub(crate) fn state_dict(tensors: &[PthTensor]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (key, tensor) in tensors.iter().enumerate() {
        text(&mut pickle, &tensor.name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend(format!("ctorch\n{}\n", tensor.storage).bytes());
        text(&mut pickle, &key.to_string());
        text(&mut pickle, "cpu");
        integer(&mut pickle, tensor.length);
        pickle.extend(b"tQ");
        integer(&mut pickle, tensor.offset);
        for sizes in [&tensor.shape, &tensor.strides] {
            pickle.push(b'(');
            sizes.iter().for_each(|&size| integer(&mut pickle, size));
            pickle.push(b't');
        }
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend(b"u.");
    pickle
}

/// The bytes of a `.pth` file of these tensors.
pub(crate) fn pth(tensors: &[PthTensor]) -> Vec<u8> {
    let storages: Vec<_> = tensors
        .iter()
        .enumerate()
        .map(|(key, tensor)| (key.to_string(), tensor.bytes.clone()))
        .collect();
    archive(&state_dict(tensors), &storages)
}

/// The bytes of a `.pth` file with this pickle and these storages.
pub(crate) fn archive(pickle: &[u8], storages: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut add = |name: &str, bytes: &[u8]| {
        zip.start_file(format!("model/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    add("data.pkl", pickle);
    add("byteorder", b"little");
    for (key, bytes) in storages {
        add(&format!("data/{key}"), bytes);
    }
    zip.finish().unwrap().into_inner()
}

fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.bytes());
}

/// LONG1 of 8 bytes.
fn integer(pickle: &mut Vec<u8>, value: i64) {
    pickle.extend([0x8a, 8]);
    pickle.extend(value.to_le_bytes());
}
