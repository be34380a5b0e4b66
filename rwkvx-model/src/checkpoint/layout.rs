//! From the tensors of a file to a configuration, and on to a tensor for every parameter with none left over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rwkvx_kernels::int8_group;

use super::{LoadOptions, SCALE, StoredDtype, StoredTensor, format_error};
use crate::Error;
use crate::config::RwkvXConfig;
use crate::names::{NamedParam, PREFIX, Role, Site, published_shape};

/// The tensors of a file by name, and what the names of its recurrent part start with.
struct Tensors<'a> {
    path: &'a Path,
    prefix: &'static str,
    by_name: BTreeMap<&'a str, &'a StoredTensor>,
}

impl<'a> Tensors<'a> {
    fn new(path: &'a Path, tensors: &'a [StoredTensor]) -> Self {
        let prefix = match tensors.iter().any(|tensor| tensor.name.starts_with(PREFIX)) {
            true => PREFIX,
            false => "",
        };
        let by_name = tensors
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        Self {
            path,
            prefix,
            by_name,
        }
    }

    /// The shape of a tensor of the recurrent part, of `D` axes.
    fn shape<const D: usize>(&self, name: &str) -> Result<[usize; D], Error> {
        let name = format!("{}{name}", self.prefix);
        let Some(tensor) = self.by_name.get(name.as_str()) else {
            return Err(format_error(
                self.path,
                format!(
                    "has no tensor `{name}`, so it is no RWKV-7 or RWKV-X checkpoint, or not all of one"
                ),
            ));
        };
        tensor.shape.as_slice().try_into().map_err(|_| {
            format_error(
                self.path,
                format!(
                    "tensor `{name}` has shape {:?}, expected {D} axes",
                    tensor.shape
                ),
            )
        })
    }

    /// Number of blocks of a kind, which must be numbered without a gap.
    fn blocks(
        &self,
        kind: &str,
        index: impl Fn(Site<'_>) -> Option<usize>,
    ) -> Result<usize, Error> {
        let indices: BTreeSet<usize> = self
            .by_name
            .keys()
            .filter_map(|name| index(Site::of(name)))
            .collect();
        match indices
            .iter()
            .enumerate()
            .find(|&(expected, &found)| expected != found)
        {
            Some((missing, _)) => Err(format_error(
                self.path,
                format!("{kind} block {missing} is missing, later ones are there"),
            )),
            None => Ok(indices.len()),
        }
    }
}

/// The configuration of a checkpoint: sizes from its shapes; chunk size and top-k from `options`, else from the `stored`
/// configuration, else as published.
pub(super) fn infer(
    path: &Path,
    tensors: &[StoredTensor],
    stored: Option<&RwkvXConfig>,
    options: &LoadOptions,
) -> Result<RwkvXConfig, Error> {
    let tensors = Tensors::new(path, tensors);
    let [vocab_size, channels] = tensors.shape("emb.weight")?;
    let [_, head_size] = tensors.shape("blocks.0.att.r_k")?;
    let [_, decay_rank] = tensors.shape("blocks.0.att.w1")?;
    let [_, rate_rank] = tensors.shape("blocks.0.att.a1")?;
    let [_, gate_rank] = tensors.shape("blocks.0.att.g1")?;
    let n_layer = tensors.blocks("recurrent", |site| match site {
        Site::Recurrent { layer, .. } => Some(layer),
        _ => None,
    })?;
    let n_sparse = tensors.blocks("sparse", |site| match site {
        Site::Sparse { block, .. } => Some(block),
        _ => None,
    })?;
    let base = RwkvXConfig::rwkv7(vocab_size, channels, n_layer);
    let value_rank = match n_layer {
        // Layer 0 has no value residual, so a single layer says nothing about its rank.
        1 => stored.map_or(base.value_rank, |config| config.value_rank),
        _ => tensors.shape::<2>("blocks.1.att.v1")?[1],
    };
    let key_conv = tensors.by_name.get("moba.0.att.key_conv");
    let config = RwkvXConfig {
        head_size,
        n_sparse,
        key_conv: key_conv
            .and_then(|tensor| tensor.shape.first())
            .map_or(0, |&width| width),
        chunk_size: stored.map_or(base.chunk_size, |config| config.chunk_size),
        top_k: stored.map_or(base.top_k, |config| config.top_k),
        decay_rank,
        rate_rank,
        value_rank,
        gate_rank,
        ..base
    };
    if let Some(stored) = stored.filter(|&stored| *stored != config) {
        return Err(format_error(
            path,
            format!("its tensors make {config:?}, but it says it is {stored:?}"),
        ));
    }
    let config = RwkvXConfig {
        chunk_size: options.chunk_size.unwrap_or(config.chunk_size),
        top_k: options.top_k.unwrap_or(config.top_k),
        ..config
    };
    config
        .validate()
        .map_err(|error| format_error(path, error.to_string()))?;
    Ok(config)
}

/// Where in the file a parameter is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Index of its tensor.
    pub(super) tensor: usize,
    /// Index of its scales, if it is quantised.
    pub(super) scales: Option<usize>,
}

/// The place of every parameter, by the parameter's name.
pub(super) fn pair(
    path: &Path,
    tensors: &[StoredTensor],
    parameters: &[NamedParam],
) -> Result<BTreeMap<String, Place>, Error> {
    let prefix = Tensors::new(path, tensors).prefix;
    let in_file = |parameter: &str| match Site::of(parameter) {
        Site::Sparse { .. } => parameter.to_owned(),
        _ => format!(
            "{prefix}{}",
            parameter.strip_prefix(PREFIX).unwrap_or(parameter)
        ),
    };
    let mut left: BTreeMap<&str, usize> = tensors
        .iter()
        .enumerate()
        .map(|(index, tensor)| (tensor.name.as_str(), index))
        .collect();
    let mut paired = BTreeMap::new();
    let mut missing = Vec::new();
    for parameter in parameters {
        let name = in_file(&parameter.name);
        let Some(tensor) = left.remove(name.as_str()) else {
            missing.push(parameter);
            continue;
        };
        check(path, &tensors[tensor], parameter)?;
        let scales = match tensors[tensor].dtype {
            StoredDtype::Int8 => {
                let scales = left.remove(format!("{name}{SCALE}").as_str());
                Some(check_scales(path, tensors, &name, parameter, scales)?)
            }
            _ => None,
        };
        let place = Place { tensor, scales };
        paired.insert(parameter.name.clone(), place);
    }
    if let Some(first) = missing.first() {
        return Err(Error::MissingTensor {
            path: path.to_owned(),
            name: in_file(&first.name),
            expected: published_shape(&first.name, &first.shape),
            others: missing.len() - 1,
        });
    }
    left.retain(|name, _| !is_unused(name));
    if let Some((&name, &index)) = left.first_key_value() {
        return Err(Error::UnexpectedTensor {
            path: path.to_owned(),
            name: name.to_owned(),
            found: tensors[index].shape.clone(),
            others: left.len() - 1,
        });
    }
    Ok(paired)
}

/// Whether a tensor is one of layer 0's value residual, which RWKV-LM's training code creates and never reads.
fn is_unused(name: &str) -> bool {
    matches!(
        Site::of(name),
        Site::Recurrent {
            layer: 0,
            parameter: "att.v0" | "att.v1" | "att.v2"
        }
    )
}

fn check(path: &Path, tensor: &StoredTensor, parameter: &NamedParam) -> Result<(), Error> {
    let published = published_shape(&parameter.name, &parameter.shape);
    if tensor.shape != published && tensor.shape != parameter.shape {
        return Err(Error::TensorShape {
            path: path.to_owned(),
            name: tensor.name.clone(),
            expected: published,
            found: tensor.shape.clone(),
        });
    }
    match &tensor.dtype {
        // Only projections and the head are read where all of their weights are used at once.
        StoredDtype::Int8
            if parameter.role == Role::Matrix && !parameter.name.ends_with("emb.weight") =>
        {
            Ok(())
        }
        found @ (StoredDtype::Int8 | StoredDtype::Other(_)) => Err(Error::TensorDtype {
            path: path.to_owned(),
            name: tensor.name.clone(),
            found: found.to_string(),
        }),
        _ => Ok(()),
    }
}

/// The index of the scales of a quantised matrix, which must be there and have their shape.
fn check_scales(
    path: &Path,
    tensors: &[StoredTensor],
    name: &str,
    parameter: &NamedParam,
    scales: Option<usize>,
) -> Result<usize, Error> {
    let [outputs, inputs] = parameter.shape[..] else {
        unreachable!("matrices have two axes");
    };
    let Some(group) = int8_group(inputs) else {
        return Err(format_error(
            path,
            format!("tensor `{name}` is I8, but its {inputs} inputs are no whole groups of 32"),
        ));
    };
    let (name, expected) = (format!("{name}{SCALE}"), vec![outputs, inputs / group]);
    let Some(index) = scales else {
        return Err(Error::MissingTensor {
            path: path.to_owned(),
            name,
            expected,
            others: 0,
        });
    };
    if tensors[index].shape != expected {
        return Err(Error::TensorShape {
            path: path.to_owned(),
            name,
            expected,
            found: tensors[index].shape.clone(),
        });
    }
    match &tensors[index].dtype {
        StoredDtype::F32 => Ok(index),
        found => Err(Error::TensorDtype {
            path: path.to_owned(),
            name,
            found: found.to_string(),
        }),
    }
}
