//! `k3s certificate check`: each certificate of each file, in K3s' four formats.

use std::path::{Path, PathBuf};

use agent::join::expiry::{Facts, Standing};
use agent::join::services::Service;
use agent::wire::time;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::table;
use super::{Level, Line, unreadable};
use crate::config::admin::CertificateOutput;

/// K3s warns of what it would renew at its next start (`CertificateRenewDays`).
const WARN_DAYS: u64 = 120;
const DAY: u64 = 86_400;
const HOUR: u64 = 3600;
const WEEK: u64 = 7 * DAY;
const MONTH: u64 = 30 * DAY;
const YEAR: u64 = 12 * MONTH;

/// A certificate, and in which file (its name) it is.
pub struct Found {
    file: String,
    facts: Facts,
}

/// All of some services.
#[derive(Default)]
pub struct Collected {
    /// In the order of the services.
    pub certificates: Vec<Found>,
    without: Vec<PathBuf>,
}

impl Collected {
    /// Which files have no certificate, or are not there.
    pub fn missing(&self) -> impl Iterator<Item = Line> {
        let line = |path: &PathBuf| (Level::Debug, format!("no certificate in {}", path.display()));
        self.without.iter().map(line)
    }
}

/// Reads the files of these services.
///
/// # Errors
/// A file is there and cannot be read: what it holds may have ended, so nothing is said to be well.
pub fn collect(data_dir: &Path, services: &[Service]) -> anyhow::Result<Collected> {
    let mut all = Collected::default();
    for path in services.iter().flat_map(|service| service.files(data_dir)) {
        let found = Facts::of_file(&path).map_err(|error| unreadable(&path, &error))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match found.is_empty() {
            true => all.without.push(path),
            false => all.certificates.extend(found.into_iter().map(|facts| Found {
                file: file.clone(),
                facts,
            })),
        }
    }
    Ok(all)
}

/// For standard error, and for standard output.
pub fn shown(all: &[Found], output: CertificateOutput, now: Timestamp) -> (Vec<Line>, String) {
    match output {
        CertificateOutput::Text => (all.iter().map(|found| line(found, now)).collect(), String::new()),
        CertificateOutput::Table => (Vec::new(), as_table(all, now)),
        CertificateOutput::Json => {
            let certificates: Vec<_> = all.iter().map(|found| as_json(found, now)).collect();
            (Vec::new(), format!("{}\n", json!({ "Certificates": certificates })))
        }
        CertificateOutput::Yaml => (Vec::new(), as_yaml(all, now)),
    }
}

fn standing(found: &Found, now: Timestamp) -> Standing {
    Standing::of(found.facts.window, seconds(now), WARN_DAYS * DAY)
}

fn seconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_second()).unwrap_or(0)
}

/// The moment that counts: its end, or its beginning while that is to come.
fn moment(found: &Found, now: Timestamp) -> Timestamp {
    let at = match standing(found, now) {
        Standing::NotYetValid => found.facts.window.from,
        Standing::Ok | Standing::Warning | Standing::Expired => found.facts.window.until,
    };
    i64::try_from(at)
        .ok()
        .and_then(|at| Timestamp::from_second(at).ok())
        .unwrap_or(Timestamp::MAX)
}

fn line(found: &Found, now: Timestamp) -> Line {
    let at = time::seconds(moment(found, now));
    let (level, end) = match standing(found, now) {
        Standing::NotYetValid => (Level::Error, format!("is not valid before {at}")),
        Standing::Expired => (Level::Error, format!("expired at {at}")),
        Standing::Warning => (Level::Warning, format!("will expire within {WARN_DAYS} days at {at}")),
        Standing::Ok => (Level::Info, format!("is ok, expires at {at}")),
    };
    let Facts { subject, usages, .. } = &found.facts;
    (
        level,
        format!("{}: certificate {subject} ({}) {end}", found.file, usages.join(",")),
    )
}

fn as_table(all: &[Found], now: Timestamp) -> String {
    let head = ["FILENAME", "SUBJECT", "USAGES", "EXPIRES", "RESIDUAL TIME", "STATUS"];
    let row = |found: &Found| {
        [
            found.file.clone(),
            found.facts.subject.clone(),
            found.facts.usages.join(","),
            moment(found, now).strftime("%b %d, %Y %H:%M UTC").to_string(),
            distance(found.facts.window.until.abs_diff(seconds(now))),
            standing(found, now).name().to_owned(),
        ]
    };
    let rule = head.map(|title| "-".repeat(title.len()));
    let rows: Vec<_> = std::iter::once(rule).chain(all.iter().map(row)).collect();
    format!("\n{}", table::text(head, &rows))
}

fn as_json(found: &Found, now: Timestamp) -> Value {
    json!({
        "Filename": found.file,
        "Subject": found.facts.subject,
        "Issuer": found.facts.issuer,
        "Usages": found.facts.usages,
        "ExpiryTime": time::seconds(moment(found, now)),
        "ResidualTime": residual(found, now).saturating_mul(1_000_000_000),
        "Status": standing(found, now).name(),
    })
}

/// Strings are quoted as in JSON, which YAML reads.
fn as_yaml(all: &[Found], now: Timestamp) -> String {
    let mut text = if all.is_empty() {
        "certificates: []\n"
    } else {
        "certificates:\n"
    }
    .to_owned();
    for found in all {
        let quoted = |text: &str| Value::from(text).to_string();
        text.push_str(&format!("- filename: {}\n", quoted(&found.file)));
        text.push_str(&format!("  subject: {}\n", quoted(&found.facts.subject)));
        text.push_str(&format!("  issuer: {}\n  usages:\n", quoted(&found.facts.issuer)));
        for usage in &found.facts.usages {
            text.push_str(&format!("  - {usage}\n"));
        }
        text.push_str(&format!("  expirytime: {}\n", time::seconds(moment(found, now))));
        text.push_str(&format!("  residualtime: {}\n", go_duration(residual(found, now))));
        text.push_str(&format!("  status: {}\n", standing(found, now).name()));
    }
    text
}

/// Seconds until its end; negative afterwards.
fn residual(found: &Found, now: Timestamp) -> i64 {
    i64::try_from(found.facts.window.until)
        .unwrap_or(i64::MAX)
        .saturating_sub(now.as_second())
}

/// As Go's `Duration` prints itself: `8760h0m0s`.
fn go_duration(seconds: i64) -> String {
    let sign = if seconds < 0 { "-" } else { "" };
    let all = seconds.unsigned_abs();
    let (hours, minutes, rest) = (all / HOUR, all / 60 % 60, all % 60);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{rest}s"),
        (0, _) => format!("{sign}{minutes}m{rest}s"),
        _ => format!("{sign}{hours}h{minutes}m{rest}s"),
    }
}

/// A span as K3s' table has it, rounded down: `1 year`, `11 months`. Source: go-humanize v1.0 `RelTime`.
fn distance(seconds: u64) -> String {
    let several = |unit: u64, name: &str| format!("{} {name}s", seconds / unit);
    match seconds {
        0 => "now".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => several(1, "second"),
        60..120 => "1 minute".to_owned(),
        120..HOUR => several(60, "minute"),
        HOUR..7200 => "1 hour".to_owned(),
        7200..DAY => several(HOUR, "hour"),
        _ if seconds < 2 * DAY => "1 day".to_owned(),
        _ if seconds < WEEK => several(DAY, "day"),
        _ if seconds < 2 * WEEK => "1 week".to_owned(),
        _ if seconds < MONTH => several(WEEK, "week"),
        _ if seconds < 2 * MONTH => "1 month".to_owned(),
        _ if seconds < YEAR => several(MONTH, "month"),
        _ if seconds < 18 * MONTH => "1 year".to_owned(),
        _ if seconds < 2 * YEAR => "2 years".to_owned(),
        _ if seconds < 37 * YEAR => several(YEAR, "year"),
        _ => "a long while".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::pki::{Names, Pki};
    use crate::scratch::Scratch;

    const MADE: &str = "2026-11-27T10:00:00Z";

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn admins(scratch: &Scratch) -> Vec<Found> {
        Pki::load_or_create(&scratch.0.join("server"), &Names::default(), at(MADE)).unwrap();
        collect(&scratch.0, &[Service::Admin]).unwrap().certificates
    }

    #[test]
    fn lines_are_k3s_and_grow_graver_towards_the_end() {
        let scratch = Scratch::new("check-lines");
        let all = admins(&scratch);
        assert_eq!(all.len(), 2, "the leaf and its authority");
        let cases = [
            (MADE, Level::Info, "is ok, expires at 2027-11-27T10:00:00Z"),
            (
                "2027-07-31T10:00:00Z",
                Level::Warning,
                "will expire within 120 days at 2027-11-27T10:00:00Z",
            ),
            ("2027-11-27T10:00:01Z", Level::Error, "expired at 2027-11-27T10:00:00Z"),
            (
                "2026-11-27T08:59:59Z",
                Level::Error,
                "is not valid before 2026-11-27T09:00:00Z",
            ),
        ];
        for (now, level, end) in cases {
            let (lines, stdout) = shown(&all, CertificateOutput::Text, at(now));
            let expected = format!("client-admin.crt: certificate system:admin (ClientAuth) {end}");
            assert_eq!(lines[0], (level, expected), "at {now}");
            assert!(stdout.is_empty());
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_and_one_that_is_not_there_is_none() {
        let scratch = Scratch::new("check-unreadable");
        let found = collect(&scratch.0, &[Service::Admin]).unwrap();
        assert_eq!(
            found.missing().next().unwrap().1,
            format!("no certificate in {}/server/tls/client-admin.crt", scratch.0.display())
        );
        std::fs::create_dir_all(scratch.0.join("server/tls/client-admin.crt")).unwrap();
        let error = collect(&scratch.0, &[Service::Admin]).err().unwrap().to_string();
        let expected = format!("cannot read {}/server/tls/client-admin.crt: ", scratch.0.display());
        assert!(error.starts_with(&expected) && !error.contains("root"), "{error}");
    }

    #[test]
    fn the_table_is_k3s() {
        let scratch = Scratch::new("check-table");
        let (_, text) = shown(&admins(&scratch), CertificateOutput::Table, at(MADE));
        let expected = "
FILENAME           SUBJECT                    USAGES       EXPIRES                  RESIDUAL TIME   STATUS
--------           -------                    ------       -------                  -------------   ------
client-admin.crt   system:admin               ClientAuth   Nov 27, 2027 10:00 UTC   1 year          OK
client-admin.crt   k3s-client-ca@1795773600   CertSign     Nov 24, 2036 10:00 UTC   10 years        OK
";
        assert_eq!(text, expected);
    }

    #[test]
    fn programs_get_the_same_in_json_and_yaml() {
        let scratch = Scratch::new("check-data");
        let all = admins(&scratch);
        let (_, json) = shown(&all, CertificateOutput::Json, at(MADE));
        let json: Value = serde_json::from_str(&json).unwrap();
        let first = json!({"Filename": "client-admin.crt", "Subject": "system:admin", "Issuer": "k3s-client-ca@1795773600",
            "Usages": ["ClientAuth"], "ExpiryTime": "2027-11-27T10:00:00Z", "ResidualTime": 31_536_000_000_000_000_i64,
            "Status": "OK"});
        assert_eq!(json["Certificates"][0], first);
        let (_, yaml) = shown(&all, CertificateOutput::Yaml, at(MADE));
        let yaml: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(yaml["certificates"][0]["subject"], "system:admin");
        assert_eq!(yaml["certificates"][0]["residualtime"], "8760h0m0s");
        assert_eq!(yaml["certificates"][1]["usages"], json!(["CertSign"]));
    }

    #[test]
    fn spans_are_rounded_as_k3s_does() {
        for (seconds, text) in [
            (0, "now"),
            (1, "1 second"),
            (59, "59 seconds"),
            (119, "1 minute"),
            (3599, "59 minutes"),
            (7199, "1 hour"),
            (DAY - 1, "23 hours"),
            (3 * DAY, "3 days"),
            (13 * DAY, "1 week"),
            (29 * DAY, "4 weeks"),
            (59 * DAY, "1 month"),
            (359 * DAY, "11 months"),
            (365 * DAY, "1 year"),
            (600 * DAY, "2 years"),
            (3650 * DAY, "10 years"),
            (u64::MAX, "a long while"),
        ] {
            assert_eq!(distance(seconds), text);
        }
        for (seconds, text) in [(0, "0s"), (61, "1m1s"), (-3661, "-1h1m1s")] {
            assert_eq!(go_duration(seconds), text);
        }
    }
}
