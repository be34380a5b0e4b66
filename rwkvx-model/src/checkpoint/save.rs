//! A model becomes `.safetensors`.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use ::safetensors::tensor::{Dtype, Metadata as Header, TensorInfo};
use burn::tensor::backend::Backend;
use burn::tensor::{TensorData, bf16, f16};
use rwkvx_kernels::int8_group;
use serde::{Deserialize, Serialize};

use super::convert::quantise;
use super::{Metadata, SCALE, format_error};
use crate::Error;
use crate::config::RwkvXConfig;
use crate::files::write_beside;
use crate::model::RwkvX;
use crate::names::{self, NamedParam, Role, published_shape};

/// The header's entry that holds our configuration and metadata. One entry, so that equal models make equal files.
pub(super) const ENTRY: &str = "rwkvx";

/// The JSON under [`ENTRY`].
#[derive(Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) config: RwkvXConfig,
    #[serde(flatten)]
    pub(super) metadata: Metadata,
}

/// Number format of the matrices of a saved model. Vectors, `r_k` among them, are always f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// 32 bits.
    #[default]
    F32,
    /// bfloat16, as most checkpoints are published.
    Bf16,
    /// IEEE half precision. Larger weights than 65504 are refused.
    F16,
    /// 8 bits and a scale per group, for projections and head (see [`int8_scheme`](rwkvx_kernels::int8_scheme)); bf16 for the other matrices and for
    /// those whose inputs are no whole groups.
    Int8,
}

/// Number format of one tensor.
#[derive(Clone, Copy)]
enum Format {
    F32,
    Bf16,
    F16,
    Int8 { group: usize },
}

impl WeightFormat {
    /// The format of a parameter.
    fn of(self, param: &NamedParam) -> Format {
        let is_matrix = matches!(param.role, Role::Matrix | Role::LowRank);
        match self {
            _ if !is_matrix || param.name.ends_with("r_k") => Format::F32,
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
            Self::F16 => Format::F16,
            Self::Int8 => match int8_group(param.shape[1]) {
                Some(group)
                    if param.role == Role::Matrix && !param.name.ends_with("emb.weight") =>
                {
                    Format::Int8 { group }
                }
                _ => Format::Bf16,
            },
        }
    }
}

impl Format {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::Int8 { .. } => Dtype::I8,
        }
    }

    /// Bytes per element.
    fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Int8 { .. } => 1,
        }
    }
}

/// Writes a model as safetensors: published names and shapes, configuration and `metadata` in the header. Weights of 8 bits have their scales beside
/// them, `NAME_scale` `[out, groups]`. The file is written beside `path` and renamed, so that `path` never holds half a model.
///
/// # Errors
/// If the folder is missing or cannot be written, or the disk is full, or a weight is no number of the format; `path` is then as it was.
pub fn save_as<B: Backend>(
    model: &RwkvX<B>,
    metadata: &Metadata,
    weights: WeightFormat,
    path: &Path,
) -> Result<(), Error> {
    let json = |error: serde_json::Error| format_error(path, error.to_string());
    let description = Description {
        config: model.config().clone(),
        metadata: metadata.clone(),
    };
    let entries = HashMap::from([(
        ENTRY.to_owned(),
        serde_json::to_string(&description).map_err(json)?,
    )]);

    let parameters = names::values(model);
    let mut end = 0;
    let mut infos = Vec::new();
    let mut place = |name: String, shape: Vec<usize>, dtype, size: usize| {
        let start = end;
        end += size * shape.iter().product::<usize>();
        let info = TensorInfo {
            dtype,
            shape,
            data_offsets: (start, end),
        };
        infos.push((name, info));
    };
    for (param, _) in &parameters {
        let format = weights.of(param);
        let shape = published_shape(&param.name, &param.shape);
        place(param.name.clone(), shape, format.dtype(), format.size());
        if let Format::Int8 { group } = format {
            let name = format!("{}{SCALE}", param.name);
            let shape = vec![param.shape[0], param.shape[1] / group];
            place(name, shape, Dtype::F32, size_of::<f32>());
        }
    }
    let header =
        Header::new(Some(entries), infos).map_err(|error| format_error(path, error.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(json)?;
    // The format aligns the data to 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');

    write_beside(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        parameters
            .iter()
            .try_for_each(|(param, value)| write(file, param, &value(), weights.of(param)))
    })
}

/// Writes the values of a parameter.
fn write(
    file: &mut dyn Write,
    param: &NamedParam,
    value: &TensorData,
    format: Format,
) -> std::io::Result<()> {
    let values = value.as_slice::<f32>().map_err(std::io::Error::other)?;
    // Not all at once, which would take as much memory again.
    let mut halves = |narrow: &dyn Fn(f32) -> u16| {
        values.chunks(1 << 16).try_for_each(|values| {
            let bytes: Vec<u8> = values
                .iter()
                .flat_map(|&x| narrow(x).to_le_bytes())
                .collect();
            file.write_all(&bytes)
        })
    };
    match format {
        Format::F32 => file.write_all(value.as_bytes()),
        Format::Bf16 => halves(&|x| bf16::from_f32(x).to_bits()),
        Format::F16 => match values
            .iter()
            .find(|&&x| x.is_finite() && !f16::from_f32(x).is_finite())
        {
            Some(large) => Err(std::io::Error::other(format!(
                "{} holds {large}, too large for f16; take bf16",
                param.name
            ))),
            None => halves(&|x| f16::from_f32(x).to_bits()),
        },
        Format::Int8 { group } => {
            let (quantised, scales) = quantise(values, group);
            let quantised: Vec<u8> = quantised.into_iter().map(i8::cast_unsigned).collect();
            file.write_all(&quantised)?;
            scales
                .iter()
                .try_for_each(|scale| file.write_all(&scale.to_le_bytes()))
        }
    }
}

/// As [`save_as`], everything in f32.
///
/// # Errors
/// If the folder is missing or cannot be written, or the disk is full; `path` is then as it was.
pub fn save<B: Backend>(model: &RwkvX<B>, metadata: &Metadata, path: &Path) -> Result<(), Error> {
    save_as(model, metadata, WeightFormat::F32, path)
}
