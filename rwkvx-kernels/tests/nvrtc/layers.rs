//! The norm and the table of embeddings with their gradients, with rows that are loaded four channels at a time and rows that are not; products of few
//! rows.

use burn::backend::Autodiff;
use burn::tensor::{DType, Int, Tensor};
use rwkvx_kernels::{Pointwise, Product, WeightLayout, embedding, layer_norm, project_all};

use crate::cases::{Case, Guard};
use crate::guard::GuardDevice;

type Train = Autodiff<Guard>;

const ROWS: usize = 256;

/// Adds both, of `dtype`.
pub(crate) fn cases(dtype: DType, cases: &mut Vec<Case>) {
    for channels in [768, 4096, 35] {
        // The contents are never looked at.
        let norm = move |device: &GuardDevice| {
            let vector = || Tensor::<Train, 1>::empty([channels], (device, dtype)).require_grad();
            let x = Tensor::<Train, 2>::empty([ROWS, channels], (device, dtype)).require_grad();
            layer_norm(x, vector(), vector()).backward();
        };
        let table = move |device: &GuardDevice| {
            let weight = Tensor::<Train, 2>::empty([4000, channels], (device, dtype));
            let ids = Tensor::<Train, 1, Int>::empty([ROWS], device);
            embedding(weight.require_grad(), ids).backward();
        };
        let mut add = |what: &str, run: Box<dyn Fn(&GuardDevice) + Sync>| {
            let name = format!("{what}, {}, C{channels}", dtype.name());
            cases.push(Case { name, run });
        };
        add("layer norm", Box::new(norm));
        add("embedding", Box::new(table));
    }
    for rows in [1, 8] {
        let products = move |device: &GuardDevice| {
            let matrix = |rows, columns, dtype| {
                Tensor::<Guard, 2>::empty([rows, columns], (device, dtype)) // never looked at
            };
            let x = || matrix(rows, 768, DType::F32);
            let square = matrix(768, 768, dtype);
            let down = matrix(768, 64, dtype);
            let up = matrix(64, 768, dtype);
            project_all(vec![
                Product::new(x(), square, WeightLayout::OutIn).plus(x()),
                Product::new(x(), down, WeightLayout::InOut).then(Pointwise::Tanh),
                Product::new(matrix(rows, 64, DType::F32), up, WeightLayout::InOut),
            ]);
        };
        let name = format!("products of {rows} rows, {}", dtype.name());
        cases.push(Case {
            name,
            run: Box::new(products),
        });
    }
}
