//! The published name, id, shape and role of every parameter.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::quantization::QuantLevel;
use burn::tensor::{DType, Tensor, TensorData};

use crate::Error;
use crate::model::RwkvX;

/// What a parameter is to an optimiser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Embedding, head and projections, `*.weight` of rank 2: the parameters that weight decay applies to.
    Matrix,
    /// A low-rank matrix (`w1`, `w2`, `a1`, ...) or `r_k`.
    LowRank,
    /// The bias of the decay, `att.w0`, which RWKV-LM trains at twice the learning rate.
    DecayBias,
    /// Any other vector: norms, token-shift amounts, biases and scales.
    Vector,
}

/// A parameter of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedParam {
    /// Name in published checkpoints: `rwkv.blocks.0.att.w0`, `moba.1.ffn.x_k`; without `rwkv.` in RWKV-7.
    pub name: String,
    /// Burn's id, which gradients and optimiser states are kept under.
    pub id: ParamId,
    /// Shape in memory. Published checkpoints store some vectors as `[1, 1, channels]`, see [`published_shape`].
    pub shape: Vec<usize>,
    /// What it is to an optimiser.
    pub role: Role,
    /// Bytes of its values in memory.
    pub bytes: usize,
}

impl NamedParam {
    /// Whether it belongs to a sparse block; stage 1 of the published training changes only these.
    pub fn is_sparse(&self) -> bool {
        matches!(Site::of(&self.name), Site::Sparse { .. })
    }
}

/// Every parameter, in the order of the model.
pub fn parameters<B: Backend>(model: &RwkvX<B>) -> Vec<NamedParam> {
    values(model).into_iter().map(|(param, _)| param).collect()
}

/// The shape under which published checkpoints store a parameter: vectors other than those of norms are `[1, 1, channels]`.
pub fn published_shape(name: &str, shape: &[usize]) -> Vec<usize> {
    let of_norm = name.ends_with(".weight") || name.ends_with(".bias");
    match shape {
        [channels] if !of_norm => vec![1, 1, *channels],
        _ => shape.to_vec(),
    }
}

/// Where in the model a parameter is.
pub(crate) enum Site<'a> {
    /// Embedding, last norm or head.
    Ends(&'a str),
    /// Of recurrent block `layer`.
    Recurrent { layer: usize, parameter: &'a str },
    /// Of sparse block `block`.
    Sparse { block: usize, parameter: &'a str },
}

impl<'a> Site<'a> {
    /// Reads a published name. Names that are no parameter's are [`Site::Ends`].
    pub(crate) fn of(name: &'a str) -> Self {
        let indexed = |rest: &'a str| -> Option<(usize, &'a str)> {
            let (index, parameter) = rest.split_once('.')?;
            Some((index.parse().ok()?, parameter))
        };
        let within = name.strip_prefix(PREFIX).unwrap_or(name);
        if let Some((block, parameter)) = name.strip_prefix("moba.").and_then(indexed) {
            Self::Sparse { block, parameter }
        } else if let Some((layer, parameter)) = within.strip_prefix("blocks.").and_then(indexed) {
            Self::Recurrent { layer, parameter }
        } else {
            Self::Ends(within)
        }
    }
}

/// What the names of the recurrent part start with when there are sparse blocks.
pub(crate) const PREFIX: &str = "rwkv.";

fn role(name: &str, rank: usize) -> Role {
    match (Site::of(name), rank) {
        (
            Site::Recurrent {
                parameter: "att.w0",
                ..
            },
            _,
        ) => Role::DecayBias,
        (_, 2) if name.ends_with(".weight") => Role::Matrix,
        (_, 2) => Role::LowRank,
        _ => Role::Vector,
    }
}

/// Bytes of the values of a parameter; of one that has none yet, those it will have in f32.
fn bytes<B: Backend, const D: usize>(param: &Param<Tensor<B, D>>) -> usize {
    let elements = param.lazy_shape().num_elements();
    if !param.is_initialized() {
        return elements * size_of::<f32>();
    }
    match param.val().dtype() {
        DType::QFloat(scheme) => {
            let scales = match scheme.level {
                QuantLevel::Block(block) => elements / block.num_elements(),
                QuantLevel::Tensor => 1,
            };
            elements + scales * size_of::<f32>()
        }
        float => elements * float.size(),
    }
}

/// The values of a tensor in f32, whatever format it has.
fn f32_data<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> TensorData {
    tensor.dequantize().into_data().convert::<f32>()
}

/// A way to a parameter's value on the host, in f32.
pub(crate) type Value = Box<dyn Fn() -> TensorData>;

/// Every parameter with a way to its value, in the order of the model.
pub(crate) fn values<B: Backend>(model: &RwkvX<B>) -> Vec<(NamedParam, Value)> {
    struct Visitor {
        path: FieldPath,
        found: Vec<(NamedParam, Value)>,
    }
    impl<B: Backend> ModuleVisitor<B> for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            let name = self.path.name();
            // The shape alone gives no value to a parameter that has none yet.
            let shape = param.lazy_shape().to_vec();
            let named = NamedParam {
                role: role(&name, shape.len()),
                bytes: bytes(param),
                name,
                id: param.id,
                shape,
            };
            let param = param.clone();
            self.found
                .push((named, Box::new(move || f32_data(param.val()))));
        }
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.segments.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.segments.pop();
        }
    }
    let mut visitor = Visitor {
        path: FieldPath::of(model),
        found: Vec::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

/// Gives every parameter the value, in its number format, that `value` has for its published name and shape in memory.
///
/// # Errors
/// The first error of `value`; no parameter is asked for after it.
pub(crate) fn fill<B: Backend>(
    model: RwkvX<B>,
    value: impl FnMut(&str, &[usize]) -> Result<TensorData, Error>,
) -> Result<RwkvX<B>, Error> {
    struct Mapper<F> {
        path: FieldPath,
        value: F,
        error: Option<Error>,
    }
    impl<B: Backend, F: FnMut(&str, &[usize]) -> Result<TensorData, Error>> ModuleMapper<B>
        for Mapper<F>
    {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            if self.error.is_some() {
                return param;
            }
            let shape = param.lazy_shape();
            match (self.value)(&self.path.name(), shape.as_slice()) {
                Ok(data) => {
                    let options = (&param.lazy_device(), data.dtype);
                    let tensor = Tensor::from_data(data, options);
                    Param::initialized(param.id, tensor.require_grad())
                }
                Err(error) => {
                    self.error = Some(error);
                    param
                }
            }
        }
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.path.segments.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.segments.pop();
        }
    }
    let mut mapper = Mapper {
        path: FieldPath::of(&model),
        value,
        error: None,
    };
    let model = model.map(&mut mapper);
    match mapper.error {
        Some(error) => Err(error),
        None => Ok(model),
    }
}

/// The fields on the way to a parameter.
struct FieldPath {
    segments: Vec<String>,
    prefixed: bool,
}

impl FieldPath {
    fn of<B: Backend>(model: &RwkvX<B>) -> Self {
        Self {
            segments: Vec::new(),
            prefixed: model.config().n_sparse > 0,
        }
    }

    fn name(&self) -> String {
        let name = self.segments.join(".");
        match name.strip_prefix(PREFIX) {
            Some(within) if !self.prefixed => within.to_owned(),
            _ => name,
        }
    }
}
