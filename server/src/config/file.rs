//! K3s' configuration file: YAML whose keys are flags, turned into arguments before those of the command line (9.3).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::ConfigError;

/// The flags a file may have keys for.
pub(super) struct Flags {
    long: BTreeSet<String>,
    short: BTreeMap<char, String>,
}

impl Flags {
    /// Those of a command.
    pub(super) fn of(command: &clap::Command) -> Self {
        let long = |arg: &clap::Arg| arg.get_long().map(str::to_owned);
        Self {
            long: command.get_arguments().filter_map(long).collect(),
            short: command
                .get_arguments()
                .filter_map(|arg| Some((arg.get_short()?, arg.get_long().unwrap_or_default().to_owned())))
                .collect(),
        }
    }

    /// Further ones.
    pub(super) fn add<'a>(&mut self, flags: impl IntoIterator<Item = &'a str>) {
        self.long.extend(flags.into_iter().map(str::to_owned));
    }
}

/// Reads the file and its drop-ins (`FILE.d/*.yaml`, in order). That there is none is an error only when it is `wanted`.
pub(super) fn read(path: &Path, wanted: bool) -> Result<Vec<Value>, ConfigError> {
    let mut paths = vec![path.to_owned()];
    let folder = PathBuf::from(format!("{}.d", path.display()));
    let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
    let yaml = |path: &PathBuf| path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    let mut more: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(yaml).collect();
    more.sort();
    paths.extend(more);
    let mut documents = Vec::new();
    for path in paths {
        let fault = |why: String| ConfigError::File {
            path: path.clone(),
            why,
        };
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().is_empty() => {}
            Ok(text) => {
                let document: Value = serde_saphyr::from_str(&text).map_err(|error| fault(error.to_string()))?;
                if !document.is_object() && !document.is_null() {
                    return Err(fault(
                        "wanted a mapping of flags to values, such as \"debug: true\"".to_owned(),
                    ));
                }
                documents.push(document);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !wanted => {}
            Err(error) => return Err(fault(error.to_string())),
        }
    }
    Ok(documents)
}

/// Arguments with the file's settings put in after the program's name, and warnings.
///
/// A later document's key replaces an earlier one's, `key+` adds to it; a flag on the command line replaces both.
pub(super) fn merge(args: Vec<String>, documents: &[Value], flags: &Flags) -> (Vec<String>, Vec<String>) {
    let mut settings: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut warnings = Vec::new();
    for (key, value) in documents.iter().filter_map(Value::as_object).flatten() {
        let (key, add) = match key.strip_suffix('+') {
            Some(key) => (key, true),
            None => (key.as_str(), false),
        };
        let mut letters = key.chars();
        let key = match (letters.next(), letters.next()) {
            (Some(letter), None) => flags.short.get(&letter).map_or(key, String::as_str),
            _ => key,
        };
        if !flags.long.contains(key) {
            warnings.push(format!("the configuration file's {key:?} is no flag of this command"));
            continue;
        }
        let entry = settings.entry(key).or_default();
        match add {
            true => entry.extend(texts(value)),
            false => *entry = texts(value),
        }
    }
    let short_of = |long: &str| {
        flags
            .short
            .iter()
            .find(|(_, name)| *name == long)
            .map(|(short, _)| *short)
    };
    let mut args = args.into_iter();
    let mut merged: Vec<String> = args.next().into_iter().collect();
    let rest: Vec<String> = args.collect();
    for (key, values) in settings {
        if value_of(&rest, key, short_of(key)).is_none() {
            merged.extend(values.into_iter().map(|value| format!("--{key}={value}")));
        }
    }
    merged.extend(rest);
    (merged, warnings)
}

/// The last value of a flag on a command line; of one without a value, what follows it.
pub(super) fn value_of(args: &[String], long: &str, short: Option<char>) -> Option<String> {
    let mut found = None;
    for (at, arg) in args.iter().enumerate() {
        let (flag, value) = match arg.split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (arg.as_str(), None),
        };
        let is_long = flag.strip_prefix("--") == Some(long);
        let is_short = short.is_some_and(|short| flag.strip_prefix('-').is_some_and(|rest| rest.chars().eq([short])));
        if is_long || is_short {
            found = Some(value.or_else(|| args.get(at + 1).cloned()).unwrap_or_default());
        }
    }
    found
}

/// A command line without a flag that has a value.
pub(super) fn without(args: Vec<String>, long: &str, short: char) -> Vec<String> {
    let mut kept = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let flag = arg.split('=').next().unwrap_or_default();
        if flag.strip_prefix("--") != Some(long) && !flag.strip_prefix('-').is_some_and(|rest| rest.chars().eq([short]))
        {
            kept.push(arg);
        } else if !arg.contains('=') {
            args.next();
        }
    }
    kept
}

fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(all) => all.iter().flat_map(texts).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Null => Vec::new(),
        other => vec![other.to_string()],
    }
}
