//! Means and how sure they are.

use serde::{Deserialize, Serialize};

/// A mean over questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// The mean.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
}

impl Mean {
    /// The mean of values and the standard error by their sample variance; 0 of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        let count = values.len().max(1) as f64;
        let value = values.iter().sum::<f64>() / count;
        let squares: f64 = values.iter().map(|other| (other - value).powi(2)).sum();
        Self {
            value,
            stderr: (squares / (count - 1.0).max(1.0) / count).sqrt(),
        }
    }

    /// The mean over the values of all groups, with the standard error by the variance within groups.
    pub fn pooled<'a>(groups: impl IntoIterator<Item = &'a [f64]>) -> Self {
        let (mut sum, mut squares, mut count, mut within) = (0.0, 0.0, 0.0, 0.0);
        for values in groups {
            let mean = Self::of(values.iter().copied()).value;
            sum += values.iter().sum::<f64>();
            squares += values
                .iter()
                .map(|value| (value - mean).powi(2))
                .sum::<f64>();
            count += values.len() as f64;
            within += values.len() as f64 - 1.0;
        }
        Self {
            value: sum / f64::max(count, 1.0),
            stderr: (squares / f64::max(within, 1.0) / f64::max(count, 1.0)).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_is_by_sample_variance() {
        let mean = Mean::of([1.0, 0.0, 1.0, 1.0]);
        assert_eq!(mean.value, 0.75);
        assert!((mean.stderr - (0.75f64 * 0.25 / 3.0).sqrt()).abs() < 1e-15);
        assert_eq!(Mean::of([2.0]).stderr, 0.0);
        assert_eq!(Mean::of([]).value, 0.0);
        let groups = [&[1.0, 0.0][..], &[1.0, 1.0, 1.0]];
        let pooled = Mean::pooled(groups);
        assert_eq!(pooled.value, 0.8);
        assert!((pooled.stderr - (0.5f64 / 3.0 / 5.0).sqrt()).abs() < 1e-15);
        assert_eq!(Mean::pooled(groups[..1].to_vec()), Mean::of([1.0, 0.0]));
    }
}
