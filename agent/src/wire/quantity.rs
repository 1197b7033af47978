//! Quantities as Kubernetes writes them: `128Mi`, `1.5G`, `250m`.
//!
//! Text in, an exact number out; no other file spells a suffix. What a cluster has stored once must parse for ever:
//! widen this, never narrow it. Source: apimachinery v1.36 `pkg/api/resource` (`ParseQuantity`, `CanonicalizeBytes`).

use std::fmt;

use crate::units::Bytes;

/// An exact decimal amount and the family of suffixes it was written with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quantity {
    /// In units of 10^-9; finer parts are rounded away from zero, as upstream does.
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    /// `n u m` none `k M G T P E`: powers of 1000.
    Decimal,
    /// `Ki Mi Gi Ti Pi Ei`: powers of 1024.
    Binary,
    /// `e3`, `E-2`.
    Exponent,
}

/// What could not be read, and where.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError {
    /// Offset in bytes of the first byte that does not fit.
    pub offset: usize,
}

const NANO: i128 = 1_000_000_000;
/// The largest amount upstream keeps: 2^63 − 1 whole units; more is capped there.
const MAX: i128 = (i64::MAX as i128) * NANO;
const DECIMAL: [(&str, i32); 10] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("", 0),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    /// Zero.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::Decimal,
    };

    /// Reads a quantity: a signed decimal number, then at most one suffix or exponent; no spaces.
    ///
    /// # Errors
    /// [`QuantityError`] holds the offset of what could not be read. No input panics.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let (negative, body) = match text.as_bytes().first() {
            Some(b'-') => (true, text.get(1..).unwrap_or_default()),
            Some(b'+') => (false, text.get(1..).unwrap_or_default()),
            _ => (false, text),
        };
        let sign = text.len() - body.len();
        let number_end = body
            .bytes()
            .position(|byte| !byte.is_ascii_digit() && byte != b'.')
            .unwrap_or(body.len());
        let (number, suffix) = body.split_at(number_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError { offset: sign });
        }
        let (scale, format) = scale_of(suffix).ok_or(QuantityError {
            offset: sign + number_end,
        })?;
        let magnitude = scaled(whole, fraction, scale).min(MAX);
        Ok(Self {
            nanos: if negative { -magnitude } else { magnitude },
            format,
        })
    }

    /// So many whole units.
    pub const fn whole(units: i64) -> Self {
        Self {
            nanos: units as i128 * NANO,
            format: Format::Decimal,
        }
    }

    /// So many thousandths: CPU is counted so.
    pub const fn milli(thousandths: i64) -> Self {
        Self {
            nanos: thousandths as i128 * 1_000_000,
            format: Format::Decimal,
        }
    }

    /// A size, written with binary suffixes.
    pub fn bytes(size: Bytes) -> Self {
        Self {
            nanos: (i128::from(size.get()) * NANO).min(MAX),
            format: Format::Binary,
        }
    }

    /// Whole units, a fraction rounded up.
    pub fn value(self) -> i64 {
        i64::try_from(div_ceil(self.nanos, NANO)).unwrap_or(i64::MAX)
    }

    /// Thousandths, a finer fraction rounded up.
    pub fn milli_value(self) -> i64 {
        i64::try_from(div_ceil(self.nanos, 1_000_000)).unwrap_or(i64::MAX)
    }

    /// The amount as a size; less than nothing is nothing.
    pub fn as_bytes(self) -> Bytes {
        Bytes::new(u64::try_from(self.value()).unwrap_or(0))
    }

    /// Below zero.
    pub const fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// The sum, in this quantity's way of writing; capped at the largest amount.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            nanos: (self.nanos + other.nanos).clamp(-MAX, MAX),
            format: self.format,
        }
    }

    /// The difference, in this quantity's way of writing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            nanos: (self.nanos - other.nanos).clamp(-MAX, MAX),
            format: self.format,
        }
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        self.nanos.partial_cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: no fraction, the largest suffix that allows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = self.nanos % NANO == 0;
        if self.format == Format::Binary && whole && self.nanos.abs() >= 1024 * NANO {
            let units = self.nanos / NANO;
            let (suffix, power) = BINARY
                .iter()
                .rev()
                .find(|(_, power)| units % (1 << power) == 0)
                .copied()
                .unwrap_or(("", 0));
            return write!(f, "{}{suffix}", units >> power);
        }
        let exact = |power: i32| {
            let unit = pow10(power + 9);
            (self.nanos % unit == 0).then_some(self.nanos / unit)
        };
        if self.nanos == 0 {
            return f.write_str("0");
        }
        for (suffix, power) in DECIMAL.iter().rev() {
            if let Some(count) = exact(*power) {
                return match (self.format, *power) {
                    (Format::Exponent, 0) => write!(f, "{count}"),
                    (Format::Exponent, power) => write!(f, "{count}e{power}"),
                    (Format::Decimal | Format::Binary, _) => write!(f, "{count}{suffix}"),
                };
            }
        }
        write!(f, "{}n", self.nanos)
    }
}

enum Scale {
    Ten(i32),
    Two(u32),
}

fn scale_of(suffix: &str) -> Option<(Scale, Format)> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some((Scale::Two(*power), Format::Binary));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((Scale::Ten(*power), Format::Decimal));
    }
    let digits = suffix.strip_prefix(['e', 'E'])?;
    let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(digits);
    let plain = !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit());
    let power: i32 = plain.then(|| digits.parse().ok()).flatten()?;
    Some((Scale::Ten(power), Format::Exponent))
}

/// 10^power, capped far above [`MAX`].
fn pow10(power: i32) -> i128 {
    u32::try_from(power)
        .ok()
        .and_then(|power| 10_i128.checked_pow(power))
        .unwrap_or(if power < 0 { 1 } else { i128::MAX })
}

/// `whole.fraction` times the scale, in units of 10^-9, rounded up; saturates.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> i128 {
    // Digits beyond these cannot change a result that is capped at 2^63 and rounded at 10^-9.
    const DIGITS: usize = 38;
    let mut mantissa: i128 = 0;
    let mut dropped = 0_i32;
    let mut kept_fraction = 0_i32;
    let mut sticky = false;
    for (index, digit) in whole.bytes().chain(fraction.bytes()).enumerate() {
        let is_fraction = index >= whole.len();
        let value = i128::from(digit - b'0');
        match mantissa.checked_mul(10).and_then(|shifted| shifted.checked_add(value)) {
            Some(next) if index < DIGITS => {
                mantissa = next;
                kept_fraction += i32::from(is_fraction);
            }
            _ => {
                sticky |= value != 0;
                dropped = dropped.saturating_add(i32::from(!is_fraction));
            }
        }
    }
    let (power, binary) = match scale {
        Scale::Ten(power) => (power, 0),
        Scale::Two(power) => (0, power),
    };
    let power = power
        .saturating_add(9)
        .saturating_add(dropped)
        .saturating_sub(kept_fraction);
    let binary = mantissa.checked_mul(1_i128 << binary);
    let Some(scaled) = binary else { return MAX };
    if power >= 0 {
        return scaled
            .checked_mul(pow10(power))
            .map_or(if scaled == 0 { 0 } else { MAX }, |exact| exact.min(MAX));
    }
    match 10_i128.checked_pow(power.unsigned_abs()) {
        Some(divisor) => div_ceil(scaled, divisor) + i128::from(sticky && scaled % divisor == 0),
        None => i128::from(scaled != 0 || sticky),
    }
}

fn div_ceil(value: i128, divisor: i128) -> i128 {
    value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)
}

/// Reads a memory quantity; a fraction of a byte rounds up.
///
/// # Errors
/// As [`Quantity::parse`].
pub fn parse_memory(text: &str) -> Result<Bytes, QuantityError> {
    Quantity::parse(text).map(Quantity::as_bytes)
}

/// Reads a CPU quantity as thousandths of a core; finer parts round up.
///
/// # Errors
/// As [`Quantity::parse`].
pub fn parse_cpu(text: &str) -> Result<i64, QuantityError> {
    Quantity::parse(text).map(Quantity::milli_value)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_canonical_form_is_kubernetes_own() {
        for (input, canonical) in [
            ("0", "0"),
            ("1024Mi", "1Gi"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1.5Gi", "1536Mi"),
            ("1.5G", "1500M"),
            ("100000", "100k"),
            ("1e3", "1e3"),
            ("1500e0", "1500"),
            ("-5", "-5"),
            ("+3", "3"),
            ("0.1Mi", "104857600m"),
            ("512", "512"),
            ("1Ki", "1Ki"),
            (".5", "500m"),
            ("5.", "5"),
            ("1n", "1n"),
            ("0.0000000001", "1n"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
        ] {
            let quantity = Quantity::parse(input).unwrap_or_else(|error| panic!("{input}: {error}"));
            assert_eq!(quantity.to_string(), canonical, "{input}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused_where_it_stops_being_one() {
        for (input, offset) in [
            ("", 0),
            ("-", 1),
            ("1.2.3", 0),
            ("5x", 1),
            ("1 Gi", 1),
            ("1e", 1),
            ("Mi", 0),
            ("1Kb", 1),
        ] {
            assert_eq!(Quantity::parse(input), Err(QuantityError { offset }), "{input:?}");
        }
    }

    #[test]
    fn sizes_and_shares_round_up() {
        assert_eq!(parse_memory("1.0000001Ki"), Ok(Bytes::new(1025)));
        assert_eq!(parse_memory("128Mi"), Ok(Bytes::mib(128)));
        assert_eq!(parse_cpu("0.0001"), Ok(1));
        assert_eq!(parse_cpu("2"), Ok(2000));
        assert_eq!(parse_cpu("250m"), Ok(250));
    }

    proptest! {
        #[test]
        fn no_text_panics_and_the_canonical_form_is_a_fixed_point(text in "[-+]?[0-9]{0,25}(\\.[0-9]{0,25})?([numkMGTPE]|[KMGTPE]i|[eE][-+]?[0-9]{1,3})?") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let canonical = quantity.to_string();
                let again = Quantity::parse(&canonical).unwrap();
                prop_assert_eq!(again.nanos, quantity.nanos, "{} -> {}", text, canonical);
                prop_assert_eq!(again.to_string(), canonical);
            }
        }
    }
}
