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
    }
}
