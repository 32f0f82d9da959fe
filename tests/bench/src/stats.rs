//! Many numbers in a few.

use serde::Serialize;

/// Order statistics of a sample; all 0 when it is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) min: f64,
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Of these values. NaN doesn't occur in them.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        for value in &mut values {
            *value = round(*value, 3);
        }
        values.sort_unstable_by(f64::total_cmp);
        let Some(last) = values.len().checked_sub(1) else {
            return Self::default();
        };
        // The nearest rank, so that each figure is one that was measured.
        let at =
            |percent: usize| values[last.min((values.len() * percent).div_ceil(100).max(1) - 1)];
        Self {
            count: values.len(),
            min: values[0],
            p50: at(50),
            p95: at(95),
            p99: at(99),
            max: values[last],
        }
    }
}

/// For the JSON: no more digits than mean something.
pub(crate) fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        assert_eq!(Summary::of(Vec::new()), Summary::default());
        let one = Summary::of(vec![3.0]);
        assert_eq!((one.min, one.p50, one.p99, one.max), (3.0, 3.0, 3.0, 3.0));
        let hundred = Summary::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(
            (hundred.p50, hundred.p95, hundred.p99, hundred.max),
            (50.0, 95.0, 99.0, 100.0)
        );
        assert_eq!(round(1.23456, 2), 1.23);
    }
}
