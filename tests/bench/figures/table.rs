//! The table that a run prints, and how figures are written.

use std::fmt;
use std::time::Duration;

/// Rows in the order they were taken.
#[derive(Default)]
pub struct Table(Vec<[String; 3]>);

/// `12.3 ms`.
pub fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// The value below which `percent` of the sorted values lie.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let last = sorted.len().saturating_sub(1);
    sorted[(sorted.len() * percent / 100).min(last)]
}

impl Table {
    /// One time, or the median and both ends of several; the median is held against the limit.
    pub fn times(&mut self, what: &str, times: &[Duration], limit: Option<Duration>) {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        let median = percentile(&sorted, 50);
        let figure = match sorted.as_slice() {
            [one] => millis(*one),
            [first, .., last] => format!(
                "{} ({} to {}, n = {})",
                millis(median),
                millis(*first),
                millis(*last),
                sorted.len()
            ),
            [] => panic!("{what}: nothing was measured"),
        };
        self.row(
            what,
            figure,
            limit.map(millis),
            limit.is_some_and(|limit| median > limit),
        );
    }

    /// Median and 99th percentile; the median is held against the limit.
    pub fn spread(&mut self, what: &str, times: &[Duration], limit: Option<Duration>) {
        let (median, _, figure) = spread(times);
        self.row(
            what,
            figure,
            limit.map(millis),
            limit.is_some_and(|limit| median > limit),
        );
    }

    /// The same, each held against its own limit.
    pub fn spread_within(&mut self, what: &str, times: &[Duration], limits: [Duration; 2]) {
        let (median, late, figure) = spread(times);
        let [of_median, of_late] = limits;
        let text = format!("{} / {}", millis(of_median), millis(of_late));
        self.row(what, figure, Some(text), median > of_median || late > of_late);
    }

    /// So many a second; the limit is the least.
    pub fn rate(&mut self, what: &str, value: f64, limit: Option<f64>) {
        let text = limit.map(|limit| format!("{limit:.0} a second"));
        let missed = limit.is_some_and(|limit| value < limit);
        self.row(what, format!("{value:.0} a second"), text, missed);
    }

    /// A size in bytes, whole.
    pub fn bytes(&mut self, what: &str, bytes: u64, limit: Option<u64>) {
        self.row(
            what,
            format!("{bytes} bytes"),
            limit.map(mebibytes),
            limit.is_some_and(|limit| bytes > limit),
        );
    }

    /// An amount of memory.
    pub fn memory(&mut self, what: &str, bytes: u64, limit: Option<u64>) {
        self.row(
            what,
            mebibytes(bytes),
            limit.map(mebibytes),
            limit.is_some_and(|limit| bytes > limit),
        );
    }

    /// Anything else.
    pub fn number(&mut self, what: &str, value: f64, unit: &str, limit: Option<f64>) {
        let limit_text = limit.map(|limit| format!("{limit} {unit}"));
        self.row(
            what,
            format!("{value:.2} {unit}"),
            limit_text,
            limit.is_some_and(|limit| value > limit),
        );
    }

    fn row(&mut self, what: &str, figure: String, limit: Option<String>, missed: bool) {
        println!("  {what}: {figure}");
        let limit = limit.map_or_else(
            || "none".to_owned(),
            |limit| format!("{limit}{}", if missed { " MISSED" } else { "" }),
        );
        self.0.push([what.to_owned(), figure, limit]);
    }
}

/// Median, 99th percentile, and both as text.
fn spread(times: &[Duration]) -> (Duration, Duration, String) {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let (median, late) = (percentile(&sorted, 50), percentile(&sorted, 99));
    let figure = format!("p50 {}, p99 {} (n = {})", millis(median), millis(late), sorted.len());
    (median, late, figure)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "| what | figure | limit |\n|---|---|---|")?;
        self.0
            .iter()
            .try_for_each(|[what, figure, limit]| writeln!(out, "| {what} | {figure} | {limit} |"))
    }
}
