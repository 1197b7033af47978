//! Reads the sources of crate k8s-pb: protobuf tags, nesting, and the markers in its comments.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

/// A protobuf field as the crate declares it.
#[derive(Clone, Debug, Default)]
pub struct PbField {
    /// Its Rust name without `r#`: the proto name in snake case.
    pub name: String,
    /// Its tag.
    pub tag: u16,
    /// `message, optional`, `btree_map = "string, string"`, …
    pub form: String,
    /// Key of the message it holds, if any.
    pub message: String,
    /// `+name=value` markers of its comment.
    pub markers: Vec<(String, String)>,
}

/// A protobuf message.
#[derive(Clone, Debug, Default)]
pub struct PbMessage {
    /// Its fields in source order.
    pub fields: Vec<PbField>,
    /// `+name=value` markers of its comment.
    pub markers: Vec<(String, String)>,
}

/// Messages by key (see [`key`]).
pub type PbMessages = BTreeMap<String, PbMessage>;

/// One spelling for a message in both crates: `api.core.v1.podspec`.
pub fn key(definition: &str) -> String {
    let path = definition.strip_prefix("io.k8s.").unwrap_or(definition);
    path.replace('-', "_").to_lowercase()
}

/// One spelling for a field in both crates: lower case, letters and digits.
pub fn field_key(name: &str) -> String {
    name.chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|char| char.to_ascii_lowercase())
        .collect()
}

/// Reads every module of the crate.
pub fn read(folder: &Path) -> Result<PbMessages> {
    let mut messages = PbMessages::new();
    walk(folder, &mut Vec::new(), &mut messages)?;
    Ok(messages)
}

fn walk(folder: &Path, module: &mut Vec<String>, into: &mut PbMessages) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let (path, name) = {
            let entry = entry?;
            (entry.path(), entry.file_name().to_string_lossy().into_owned())
        };
        if path.is_dir() {
            module.push(name);
            walk(&path, module, into)?;
            module.pop();
        } else if name == "mod.rs" {
            let text = fs::read_to_string(&path)?;
            parse(&text, module, into).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

fn parse(text: &str, module: &[String], into: &mut PbMessages) -> Result<()> {
    let mut markers = Vec::new();
    let mut open: Option<(String, PbMessage)> = None;
    let mut form: Option<String> = None;
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(comment) = line.strip_prefix("///") {
            markers.extend(marker(comment.trim()));
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split([' ', '{', '<']).next().unwrap_or_default();
            let message = PbMessage {
                markers: std::mem::take(&mut markers),
                ..PbMessage::default()
            };
            let key = format!("{}.{}", module.join("."), name).to_lowercase();
            if rest.ends_with("{}") {
                into.insert(key, message);
            } else {
                open = Some((key, message));
            }
        } else if let Some(attribute) = line.strip_prefix("#[prost(") {
            form = Some(attribute.trim_end_matches(")]").to_owned());
        } else if let (Some(rest), Some((_, message))) = (line.strip_prefix("pub "), open.as_mut()) {
            let mut declaration = rest.to_owned();
            while !(declaration.ends_with(',') && balanced(&declaration)) {
                declaration.push_str(lines.next().ok_or_else(|| anyhow!("unterminated field"))?);
            }
            let form = form
                .take()
                .ok_or_else(|| anyhow!("field without prost: {declaration}"))?;
            message
                .fields
                .push(field(&declaration, &form, module, std::mem::take(&mut markers))?);
        } else if line == "}" {
            if let Some((key, message)) = open.take() {
                into.insert(key, message);
            }
            markers.clear();
        } else if !line.starts_with("#[") {
            markers.clear();
        }
    }
    Ok(())
}

/// As many angle brackets closed as opened.
fn balanced(declaration: &str) -> bool {
    let count = |char| declaration.matches(char).count();
    count('<') == count('>')
}

fn marker(comment: &str) -> Option<(String, String)> {
    let body = comment.strip_prefix('+')?;
    let (name, value) = body.split_once('=').unwrap_or((body, ""));
    Some((name.trim().to_owned(), value.trim().to_owned()))
}

fn field(declaration: &str, form: &str, module: &[String], markers: Vec<(String, String)>) -> Result<PbField> {
    let (name, rust) = declaration
        .split_once(':')
        .ok_or_else(|| anyhow!("not a field: {declaration}"))?;
    let tag = form
        .rsplit("tag = \"")
        .next()
        .and_then(|tail| tail.trim_end_matches('"').parse().ok())
        .ok_or_else(|| anyhow!("no tag: {form}"))?;
    let message = if form.contains("message") {
        resolve(rust, module)?
    } else {
        String::new()
    };
    Ok(PbField {
        name: name.trim_start_matches("r#").to_owned(),
        tag,
        form: form.to_owned(),
        message,
        markers,
    })
}

/// The key of the innermost type of a declaration; for a map, of its values.
fn resolve(rust: &str, module: &[String]) -> Result<String> {
    let inner = rust
        .trim_end_matches([',', '>', ' '])
        .rsplit(['<', ','])
        .next()
        .unwrap_or_default()
        .trim();
    let mut base: Vec<&str> = module.iter().map(String::as_str).collect();
    for step in inner.split("::") {
        match step {
            "" => bail!("absolute path {inner}"),
            "super" => {
                base.pop();
            }
            name => base.push(name.trim_start_matches("r#")),
        }
    }
    Ok(base.join(".").to_lowercase())
}
