//! Medians, and quantities as people read them.

/// The median; 0 of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// A figure with as many digits as it deserves: `38 412`, `812.4`, `0.95`.
#[must_use]
pub fn figure(value: f64) -> String {
    if value < 10.0 {
        format!("{value:.2}")
    } else if value < 1000.0 {
        format!("{value:.1}")
    } else {
        let digits = format!("{value:.0}");
        let mut grouped = String::new();
        for (n, digit) in digits.chars().enumerate() {
            if n > 0 && (digits.len() - n).is_multiple_of(3) {
                grouped.push(' ');
            }
            grouped.push(digit);
        }
        grouped
    }
}

/// The smallest and largest value, as `31 200 - 38 900`.
#[must_use]
pub fn spread(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    if values.is_empty() { String::new() } else { format!("{} - {}", figure(low), figure(high)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).abs() < 1e-9);
    }

    #[test]
    fn figures_are_grouped() {
        assert_eq!(figure(1_234_567.4), "1 234 567");
        assert_eq!(figure(999.96), "1000.0");
        assert_eq!(figure(38.44), "38.4");
        assert_eq!(figure(0.954), "0.95");
        assert_eq!(spread(&[2000.0, 1000.0]), "1 000 - 2 000");
    }
}
