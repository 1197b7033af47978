//! What the store remembers of an image: a JSON file each, and the part of an OCI configuration a container needs.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// One image.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Record {
    /// `sha256:…` of the configuration.
    pub id: String,
    /// Full names, sorted.
    pub names: Vec<String>,
    /// Bytes unpacked.
    pub size: u64,
    /// Names of the layers' folders, lowest first.
    pub layers: Vec<String>,
    /// What to run and how.
    pub process: Process,
}

/// `config` of an OCI image configuration. Docker writes null for empty.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Process {
    /// `name`, `uid`, `name:group`, `uid:gid`.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its default arguments.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// `SIGQUIT` or `3`.
    #[serde(deserialize_with = "or_default")]
    pub stop_signal: String,
}

/// An OCI (and Docker) image configuration.
#[derive(Deserialize)]
pub struct Configuration {
    /// What to run.
    #[serde(default, deserialize_with = "or_default")]
    pub config: Process,
    /// Of what.
    pub rootfs: RootFs,
    /// GOARCH.
    #[serde(default)]
    pub architecture: String,
    /// GOOS.
    #[serde(default)]
    pub os: String,
}

/// The layers, by the digests of their unpacked archives.
#[derive(Deserialize)]
pub struct RootFs {
    /// Lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// A pointer to a blob in an OCI layout.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Descriptor {
    /// `sha256:…`.
    pub digest: String,
    /// What it is.
    pub media_type: String,
    /// For what machine.
    pub platform: Option<Platform>,
    /// Names, among others.
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// A machine an image is for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct Platform {
    /// GOARCH.
    pub architecture: String,
    /// GOOS.
    pub os: String,
    /// `v6`, `v7`, `v8` for ARM.
    #[serde(deserialize_with = "or_default")]
    pub variant: String,
}

/// An OCI index, or the manifest inside it: the two are told apart by what they hold.
#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
pub struct Manifest {
    /// Of an index.
    #[serde(deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
    /// Of a manifest.
    pub config: Option<Descriptor>,
    /// Of a manifest, lowest first.
    #[serde(deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
}

/// One entry of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    /// Path of the configuration in the archive.
    pub config: String,
    /// Names.
    #[serde(default, deserialize_with = "or_default")]
    pub repo_tags: Vec<String>,
    /// Paths of the layers in the archive, lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<String>,
}

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

/// How well an image for `platform` runs on this machine; smaller is better, `None` is not at all.
pub fn preference(platform: &Platform, machine: &str) -> Option<usize> {
    let order: &[(&str, &str)] = match machine {
        "x86_64" => &[("amd64", "")],
        "aarch64" => &[
            ("arm64", "v8"),
            ("arm64", ""),
            ("arm", "v8"),
            ("arm", "v7"),
            ("arm", "v6"),
            ("arm", ""),
        ],
        "arm" => &[("arm", "v7"), ("arm", "v6"), ("arm", "v5"), ("arm", "")],
        "x86" => &[("386", "")],
        "riscv64" => &[("riscv64", "")],
        _ => &[],
    };
    let fits = |(architecture, variant): &(&str, &str)| {
        platform.architecture == *architecture && (platform.variant == *variant || *architecture == "amd64")
    };
    (platform.os == "linux").then(|| order.iter().position(fits)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_64_bit_arm_takes_32_bit_images_when_it_must() {
        let arm = |architecture: &str, variant: &str| Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: variant.into(),
        };
        let best = |machine| {
            let offered = [arm("amd64", ""), arm("arm", "v7"), arm("arm", "v6")];
            offered
                .into_iter()
                .filter(|p| preference(p, machine).is_some())
                .min_by_key(|p| preference(p, machine))
        };
        assert_eq!(best("aarch64"), Some(arm("arm", "v7")));
        assert_eq!(best("x86_64"), Some(arm("amd64", "")));
        assert_eq!(best("riscv64"), None);
    }

    #[test]
    fn dockers_nulls_are_empty() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"],"Entrypoint":null,"Env":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let read: Configuration = serde_json::from_str(text).unwrap();
        assert_eq!(
            (read.config.cmd, read.config.entrypoint),
            (vec!["sh".to_owned()], Vec::new())
        );
    }
}
