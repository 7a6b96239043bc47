//! Numbers as people read them: exact ones with the fewest digits that mean them, grids of one width.

use half::{bf16, f16};
use isonorm::DType;

/// `value`, which is a value of `dtype`, with the fewest digits that no other value of `dtype` rounds to.
pub(crate) fn exact(value: f64, dtype: DType) -> String {
    let scientific = value != 0.0 && value.is_finite() && !(1e-4..1e7).contains(&value.abs());
    match (dtype, scientific) {
        (DType::F64, false) => format!("{value}"),
        (DType::F64, true) => format!("{value:e}"),
        (DType::F32, false) => format!("{}", value as f32),
        (DType::F32, true) => format!("{:e}", value as f32),
        (DType::F16, _) => shortest(value, |v| f64::from(f16::from_f64(v))),
        (DType::Bf16, _) => shortest(value, |v| f64::from(bf16::from_f64(v))),
    }
}

/// The fewest significant digits that `round` takes back to `value`.
fn shortest(value: f64, round: impl Fn(f64) -> f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    (0..17)
        .map(|digits| format!("{value:.digits$e}"))
        .find(|text| text.parse().is_ok_and(|v| round(v) == value))
        .map_or_else(|| format!("{value}"), |text| plain(&text))
}

/// `1.25e1` as `12.5`; exponents far from 0 stay.
fn plain(scientific: &str) -> String {
    match scientific.parse::<f64>() {
        Ok(value) if (1e-4..1e7).contains(&value.abs()) => format!("{value}"),
        _ => scientific.to_owned(),
    }
}

/// `value` with six digits, of which at most four stand after the point; as it is where that is shorter.
pub(crate) fn brief(value: f64, dtype: DType) -> String {
    let text = exact(value, dtype);
    if text.trim_start_matches('-').len() <= 7 || !value.is_finite() {
        return text;
    }
    match value.abs() {
        v if !(1e-2..1e6).contains(&v) => format!("{value:.3e}"),
        v => {
            let before = if v < 10.0 { 1 } else { v.log10() as usize + 1 };
            let text = format!("{value:.digits$}", digits = 6usize.saturating_sub(before).min(4));
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
        }
    }
}

/// `value` with seven digits that count, to tell neighbours of a half type apart.
pub(crate) fn seven(value: f64) -> String {
    if !value.is_finite() {
        return format!("{value}");
    }
    plain(&format!("{value:.6e}"))
}

/// The bits of a value of the compute type: hexadecimal, and sign, exponent and fraction apart.
pub(crate) fn bits(value: f64, compute: DType) -> (String, String) {
    if compute == DType::F64 {
        let b = value.to_bits();
        let text = format!("{b:064b}");
        (format!("{b:#018x}"), format!("{} {} {}", &text[..1], &text[1..12], &text[12..]))
    } else {
        let b = (value as f32).to_bits();
        let text = format!("{b:032b}");
        (format!("{b:#010x}"), format!("{} {} {}", &text[..1], &text[1..9], &text[9..]))
    }
}

/// How the numbers of a grid are written, so that their points stand below each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Format {
    Integer,
    Fixed(usize),
    Scientific(usize),
}

impl Format {
    /// The plainest format that shows `values` with `digits` after the point.
    pub(crate) fn of(values: impl Iterator<Item = f64>, digits: usize) -> Self {
        let (mut max, mut integers) = (0f64, true);
        for value in values.filter(|v| v.is_finite()) {
            max = max.max(value.abs());
            integers &= value.fract() == 0.0;
        }
        match max {
            max if max >= 1e6 || (max > 0.0 && max < 1e-2) => Format::Scientific(digits),
            _ if integers => Format::Integer,
            _ => Format::Fixed(digits),
        }
    }

    pub(crate) fn write(self, value: f64) -> String {
        match self {
            _ if !value.is_finite() => format!("{value}"),
            Format::Integer => format!("{value:.0}"),
            // A value is never shown as the zero that it is not.
            Format::Fixed(digits) if value != 0.0 && value.abs() < 0.5 * 10f64.powi(-(digits as i32)) => {
                format!("{value:.0e}")
            }
            Format::Fixed(digits) => format!("{value:.digits$}"),
            Format::Scientific(_) if value == 0.0 => format!("{value}"),
            Format::Scientific(digits) => format!("{value:.digits$e}"),
        }
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `3 rows`, `1 row`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{} {what}{}", count(n), if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_numbers_have_the_fewest_digits_that_mean_them() {
        assert_eq!(exact(f64::from(1.0f32 / 3.0), DType::F32), "0.33333334");
        assert_eq!(exact(f64::from(1e-5f32), DType::F32), "1e-5");
        assert_eq!(exact(f64::from(f16::from_f32(1.2247)), DType::F16), "1.225");
        assert_eq!(exact(f64::from(bf16::from_f32(1.2247)), DType::Bf16), "1.23");
        assert_eq!(exact(f64::from(bf16::from_f32(1e30)), DType::Bf16), "1e30");
        assert_eq!(exact(2.0, DType::F64), "2");
        assert_eq!(exact(f64::NEG_INFINITY, DType::F16), "-inf");
    }

    #[test]
    fn brief_numbers_have_at_most_six_digits() {
        for (value, text) in [
            (12426.375, "12426.4"),
            (0.78886, "0.78886"),
            (-1.0 / 3.0, "-0.3333"),
            (1217449.1, "1.217e6"),
            (-44.5, "-44.5"),
            (6.980000019, "6.98"),
        ] {
            assert_eq!(brief(value, DType::F64), text);
        }
    }

    #[test]
    fn grids_choose_the_plainest_format() {
        assert_eq!(Format::of([1.0, -2.0].into_iter(), 4), Format::Integer);
        assert_eq!(Format::of([1.5, f64::NAN].into_iter(), 4), Format::Fixed(4));
        assert_eq!(Format::of([1.5, 1e30].into_iter(), 4), Format::Scientific(4));
        assert_eq!(Format::Fixed(4).write(1.5), "1.5000");
        assert_eq!(Format::Fixed(4).write(2e-7), "2e-7");
        assert_eq!(Format::Fixed(4).write(0.0), "0.0000");
    }

    #[test]
    fn counts_have_separators() {
        assert_eq!((count(7), count(4096), count(1_234_567)), ("7".into(), "4,096".into(), "1,234,567".into()));
    }
}
