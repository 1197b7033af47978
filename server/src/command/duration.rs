//! Durations as Go writes them: `10m`, `1h30m`, `90s`; `0` is none.

use std::time::Duration;

use anyhow::{Context as _, bail};

/// Reads one; whole numbers only.
///
/// # Errors
/// When it is none.
pub fn parse(text: &str) -> anyhow::Result<Duration> {
    let wrong = || format!("{text:?} is no duration such as 10m, 24h or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let (mut total, mut number) = (Duration::ZERO, String::new());
    for letter in text.chars() {
        if letter.is_ascii_digit() {
            number.push(letter);
            continue;
        }
        let seconds = match letter {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => bail!(wrong()),
        };
        let count: u64 = number.parse().with_context(wrong)?;
        let part = Duration::from_secs(count.checked_mul(seconds).with_context(wrong)?);
        total = total.checked_add(part).with_context(wrong)?;
        number.clear();
    }
    if text.is_empty() || !number.is_empty() {
        bail!(wrong());
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("90s", Some(90)),
            ("10m", Some(600)),
            ("24h0m0s", Some(86_400)),
            ("1h30m", Some(5400)),
            ("", None),
            ("10", None),
            ("h", None),
            ("1d", None),
            ("-1h", None),
            ("1.5h", None),
            ("99999999999999999999h", None),
        ] {
            assert_eq!(parse(text).ok().map(|found| found.as_secs()), seconds, "{text}");
        }
    }
}
