//! The one bridge from token ids to tensors.

use burn::tensor::backend::Backend;
use burn::tensor::{Int, Tensor, TensorData};

use crate::Error;

/// Rows of token ids as `[batch, time]`.
///
/// # Errors
/// If there is no row, the rows are empty or of unequal lengths, or an id is not below `vocab_size`.
pub fn ids_tensor<B: Backend>(
    rows: &[impl AsRef<[u32]>],
    vocab_size: usize,
    device: &B::Device,
) -> Result<Tensor<B, 2, Int>, Error> {
    let Some(time) = rows.first().map(|row| row.as_ref().len()) else {
        return Err(Error::TokenRows(
            "a batch needs at least one row".to_owned(),
        ));
    };
    if time == 0 {
        return Err(Error::TokenRows(
            "a text needs at least one token".to_owned(),
        ));
    }
    let mut ids = Vec::with_capacity(rows.len() * time);
    for (index, row) in rows.iter().map(AsRef::as_ref).enumerate() {
        if row.len() != time {
            let lengths = format!("row {index} has {} tokens, row 0 has {time}", row.len());
            return Err(Error::TokenRows(format!(
                "{lengths}; the rows of a batch must be of one length"
            )));
        }
        for (position, &id) in row.iter().enumerate() {
            if id as usize >= vocab_size {
                return Err(Error::TokenId {
                    id,
                    position,
                    vocab_size,
                });
            }
            ids.push(i64::from(id));
        }
    }
    Ok(Tensor::from_data(
        TensorData::new(ids, [rows.len(), time]),
        device,
    ))
}
