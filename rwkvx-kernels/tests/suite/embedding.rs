//! The lookup and the gradient of its table, by hand and by the definition.

use burn::backend::Autodiff;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_flex::Flex;

use crate::on_all_bodies;
use crate::support::{Array, Native, Operators, TOLERANCE, assert_close};

type Ad<O> = Autodiff<<O as Operators>::Inner>;

/// Rows by `ids`, and the gradient of the table when that of the rows is `d_rows`.
fn found<O: Operators>(table: &Array, ids: &[i32], d_rows: &Array, dtype: DType) -> (Array, Array) {
    let [_, _, vocab, channels] = table.shape;
    let leaf = table.tensor::<Ad<O>>().require_grad();
    let ids = TensorData::new(ids.to_vec(), [ids.len()]);
    let ids = Tensor::<Ad<O>, 1, Int>::from_data(ids, &leaf.device());
    let weight = leaf.clone().reshape([vocab, channels]).cast(dtype);
    let rows = O::embedding(weight, ids).cast(DType::F32).unsqueeze::<4>();
    let gradients = (rows.clone() * d_rows.tensor()).sum().backward();
    let gradient = leaf.grad(&gradients).expect("tracked");
    (Array::of(rows), Array::of(gradient))
}

fn exact(table: &Array, ids: &[i32], d_rows: &Array) -> (Array, Array) {
    let channels = table.shape[3];
    let (mut rows, mut gradient) = (d_rows.clone(), table.clone().map(|_| 0.0));
    for (row, &id) in ids.iter().enumerate() {
        for i in 0..channels {
            let (at, from) = (row * channels + i, id as usize * channels + i);
            rows.values[at] = table.values[from];
            gradient.values[from] += d_rows.values[at];
        }
    }
    (rows, gradient)
}

/// Ids below `vocab`; some never, some often, the first and the last among them.
fn ids(rows: usize, vocab: usize) -> Vec<i32> {
    let id = |row: usize| match row % 5 {
        0 => 0,
        1 => vocab - 1,
        _ => row * row * 7 % vocab,
    };
    (0..rows).map(|row| id(row) as i32).collect()
}

/// Tables of one group of rows and of many, with fewer and more channels than fit a cube, and rows that are no whole vectors.
fn tables_of_any_size<O: Operators>() {
    for (rows, vocab, channels) in [(1, 1, 1), (300, 7, 768), (130, 50, 35), (64, 3, 4100)] {
        let table = Array::normal([1, 1, vocab, channels], 1);
        let d_rows = Array::normal([1, 1, rows, channels], 2);
        let ids = ids(rows, vocab);
        let (rows, gradient) = found::<O>(&table, &ids, &d_rows, DType::F32);
        let (expected_rows, expected) = exact(&table, &ids, &d_rows);
        assert_eq!(rows.values, expected_rows.values);
        let what = format!("{} rows of {vocab} x {channels}", ids.len());
        assert_close(&what, &gradient, &expected, TOLERANCE);
    }
}

on_all_bodies!(tables_of_any_size);

/// Sums in half precision would stop to grow after some hundred rows.
#[test]
fn a_frequent_id_is_summed_exactly() {
    let table = Array::normal([1, 1, 2, 8], 1);
    let d_rows = Array::normal([1, 1, 4000, 8], 2).map(|_| 1.0);
    let (_, gradient) = found::<Native<Flex>>(&table, &[1; 4000], &d_rows, DType::BF16);
    assert_eq!(gradient.values[..8], [0.0; 8]);
    assert_eq!(gradient.values[8..], [4000.0; 8]);
}
