//! K3s' configuration file: its keys are flags, and it is turned into arguments before those of the command line.
//!
//! Both programs read it here. Precedence: command line, file, environment, default. Source: protocol 9.3; K3s v1.33
//! `pkg/configfilearg` `readConfigFile`, `findConfigFileFlag`, `stripInvalidFlags`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::ConfigError;
use super::yaml::{self, Entry};

/// Where K3s looks for its configuration.
pub const FILE: &str = "/etc/rancher/k3s/config.yaml";

/// The longest file that is read; people write a few lines.
const MAX_BYTES: u64 = 256 << 10;

/// The flags a file may have keys for.
pub struct Flags {
    long: BTreeSet<String>,
    short: BTreeMap<char, String>,
}

impl Flags {
    /// Those of a command.
    pub fn of(command: &clap::Command) -> Self {
        let long = |arg: &clap::Arg| arg.get_long().map(str::to_owned);
        let short = |arg: &clap::Arg| Some((arg.get_short()?, arg.get_long().unwrap_or_default().to_owned()));
        Self {
            long: command.get_arguments().filter_map(long).collect(),
            short: command.get_arguments().filter_map(short).collect(),
        }
    }

    /// Further ones.
    pub fn add<'a>(&mut self, flags: impl IntoIterator<Item = &'a str>) {
        self.long.extend(flags.into_iter().map(str::to_owned));
    }

    fn letter_of(&self, long: &str) -> Option<char> {
        self.short
            .iter()
            .find(|(_, name)| *name == long)
            .map(|(letter, _)| *letter)
    }
}

/// Puts the file's settings before those of the command line `args` (program name first); answers warnings too.
///
/// `variable` (K3S_CONFIG_FILE) goes before `--config`, as in K3s; without either the file at `otherwise` is read, and
/// need not be there.
///
/// # Errors
/// [`ConfigError::File`] for a file that is not there but was asked for, or cannot be read or understood.
pub fn apply(
    args: Vec<String>,
    variable: Option<&Path>,
    otherwise: &Path,
    flags: &Flags,
) -> Result<(Vec<String>, Vec<String>), ConfigError> {
    let given = variable
        .map(Path::to_owned)
        .or_else(|| value_of(&args, "config", Some('c')).map(PathBuf::from));
    let entries = read(given.as_deref().unwrap_or(otherwise), given.is_some())?;
    Ok(merge(args, &entries, flags))
}

/// Reads the file and its drop-ins (`FILE.d/*.yaml`, in order). That there is none is an error only when it is `wanted`.
fn read(path: &Path, wanted: bool) -> Result<Vec<Entry>, ConfigError> {
    let folder = PathBuf::from(format!("{}.d", path.display()));
    let found = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let yaml = |path: &PathBuf| path.is_file() && path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    let mut drop_ins: Vec<PathBuf> = found.filter(yaml).collect();
    drop_ins.sort();
    let needed = wanted && drop_ins.is_empty();
    let mut entries = Vec::new();
    for path in [path.to_owned()].into_iter().chain(drop_ins) {
        let fault = |why: String| ConfigError::File {
            path: path.clone(),
            why,
        };
        match text(&path) {
            Ok(text) => entries.extend(yaml::read(&text).map_err(|error| fault(error.to_string()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !needed => {}
            Err(error) => return Err(fault(error.to_string())),
        }
    }
    Ok(entries)
}

fn text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    match u64::try_from(read).is_ok_and(|read| read <= MAX_BYTES) {
        true => Ok(text),
        false => Err(io::Error::other(format!("longer than {MAX_BYTES} bytes"))),
    }
}

/// Arguments with the file's settings put in after the program's name, and warnings.
///
/// A later key replaces an earlier one, `key+` adds to it; a flag on the command line replaces both.
fn merge(args: Vec<String>, entries: &[Entry], flags: &Flags) -> (Vec<String>, Vec<String>) {
    let mut settings: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut warnings = Vec::new();
    for entry in entries {
        let (key, add) = match entry.key.strip_suffix('+') {
            Some(key) => (key, true),
            None => (entry.key.as_str(), false),
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
        let values = settings.entry(key).or_default();
        if !add {
            values.clear();
        }
        values.extend(entry.values.iter().cloned());
    }
    let mut args = args.into_iter();
    let mut merged: Vec<String> = args.next().into_iter().collect();
    let rest: Vec<String> = args.collect();
    for (key, values) in settings {
        if value_of(&rest, key, flags.letter_of(key)).is_none() {
            merged.extend(values.into_iter().map(|value| format!("--{key}={value}")));
        }
    }
    merged.extend(rest);
    (merged, warnings)
}

/// The last value of a flag on a command line; of one without a value, what follows it.
fn value_of(args: &[String], long: &str, short: Option<char>) -> Option<String> {
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
