//! Writes the schema table that the server embeds, from the sources of the published Kubernetes type crates.
//!
//! `cargo run -p schema-gen` rewrites `server/src/schema/table.bin` and `text.bin.gz`. Crate k8s-openapi has every type of
//! Kubernetes v1.36 with its JSON schema; crate k8s-pb has the protobuf tags and the markers of v1.35; `delta.txt` and
//! `presence.txt` hold, with their sources, what neither says. Both crates are read as text and never compiled.

mod build;
mod model;
mod openapi;
mod proto;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

fn main() -> Result<()> {
    let folder = output();
    let (table, text) = generate()?;
    std::fs::write(folder.join("table.bin"), &table)?;
    std::fs::write(folder.join("text.bin.gz"), write::compress(&text)?)?;
    Ok(())
}

fn output() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src/schema")
}

/// The table and the descriptions.
fn generate() -> Result<(Vec<u8>, Vec<u8>)> {
    let crates = sources()?;
    let folder = |name: &str| crates.get(name).ok_or_else(|| anyhow!("crate {name} is not locked"));
    let mut model = openapi::read(&folder("k8s-openapi")?.join("src/v1_36"))?;
    let protos = proto::read(&folder("k8s-pb")?.join("src"))?;
    build::join(&mut model, &protos)?;
    write::pack(&model)
}

/// Where cargo keeps the sources of every locked crate.
fn sources() -> Result<BTreeMap<String, PathBuf>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata
        .get("packages")
        .and_then(|list| list.as_array())
        .context("no packages")?;
    let text =
        |package: &serde_json::Value, field: &str| package.get(field).and_then(|text| text.as_str()).map(str::to_owned);
    Ok(packages
        .iter()
        .filter_map(|package| {
            let manifest = PathBuf::from(text(package, "manifest_path")?);
            Some((text(package, "name")?, manifest.parent()?.to_owned()))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_table_is_what_the_crates_say() {
        let (table, text) = generate().unwrap();
        assert!(
            table == std::fs::read(output().join("table.bin")).unwrap(),
            "table.bin is stale: run cargo run -p schema-gen"
        );
        let packed = std::fs::read(output().join("text.bin.gz")).unwrap();
        assert!(
            text == write::decompress(&packed).unwrap(),
            "text.bin.gz is stale: run cargo run -p schema-gen"
        );
    }
}
