//! An image archive as a table of blobs: where each begins, and which images they make.
//!
//! The outer archive is read twice, once for its table and once blob by blob, so it must be seekable: one that is
//! compressed as a whole is first unpacked into a nameless file. Trusted for nothing: sizes are bounded, digests checked
//! by whoever reads a blob.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Take};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::record::{Configuration, Descriptor, DockerImage, Manifest, preference};
use super::reference;

/// JSON documents beyond this are no manifests (the largest known are below 1 MiB).
const MAX_DOCUMENT: u64 = 4 << 20;
/// An archive with more members is not an image archive.
const MAX_MEMBERS: usize = 20_000;
/// How far links between members and indexes inside indexes are followed.
const MAX_HOPS: usize = 4;

/// An opened archive.
pub struct Archive {
    file: File,
    members: BTreeMap<String, Member>,
}

enum Member {
    Data { offset: u64, size: u64 },
    Link(String),
}

/// One image of an archive, before its layers are looked at.
pub struct Found {
    /// Full names; may be empty.
    pub names: Vec<String>,
    /// The configuration's bytes: the image's id is their digest.
    pub configuration: Vec<u8>,
    /// Members holding the layers, lowest first, with the digest each must have (`None`: only the unpacked one is known).
    pub layers: Vec<(String, Option<String>)>,
}

impl Archive {
    /// Reads the table. `scratch`: a folder for the unpacked form of a compressed archive.
    pub fn open(path: &Path, scratch: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let magic = magic(&mut file)?;
        if magic == ZSTD {
            return Err(bad("it is compressed with zstd, which is not supported yet".into()));
        }
        if magic.starts_with(&GZIP) {
            let mut plain = nameless(scratch)?;
            let mut packed = MultiGzDecoder::new(BufReader::with_capacity(64 << 10, file));
            io::copy(&mut packed, &mut plain).map_err(foreign)?;
            plain.rewind()?;
            file = plain;
        }
        let members = table(&file)?;
        Ok(Self { file, members })
    }

    /// A blob's bytes as stored.
    pub fn blob(&self, name: &str) -> io::Result<Take<File>> {
        let mut name = name.to_owned();
        for _ in 0..MAX_HOPS {
            match self.members.get(&name) {
                Some(Member::Data { offset, size }) => {
                    let mut file = self.file.try_clone()?;
                    file.seek(SeekFrom::Start(*offset))?;
                    return Ok(file.take(*size));
                }
                Some(Member::Link(target)) => name = target.clone(),
                None => break,
            }
        }
        Err(bad(format!("it has no member {name}")))
    }

    /// All images this machine can run.
    pub fn images(&self) -> io::Result<Vec<Found>> {
        if self.members.contains_key("manifest.json") {
            return self.docker_images();
        }
        if self.members.contains_key("index.json") {
            return self.oci_images();
        }
        Err(bad("neither manifest.json nor index.json is in it".into()))
    }

    fn document(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut blob = self.blob(name)?;
        if blob.limit() > MAX_DOCUMENT {
            return Err(bad(format!("{name} is too large")));
        }
        let mut bytes = Vec::new();
        blob.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn docker_images(&self) -> io::Result<Vec<Found>> {
        let list: Vec<DockerImage> = parse("manifest.json", &self.document("manifest.json")?)?;
        let found = |image: DockerImage| {
            Ok(Found {
                names: image
                    .repo_tags
                    .iter()
                    .filter_map(|name| reference::normalise(name))
                    .collect(),
                configuration: self.document(&clean(&image.config))?,
                layers: image.layers.iter().map(|name| (clean(name), None)).collect(),
            })
        };
        list.into_iter().map(found).collect()
    }

    fn oci_images(&self) -> io::Result<Vec<Found>> {
        let index: Manifest = parse("index.json", &self.document("index.json")?)?;
        let mut images: Vec<Found> = Vec::new();
        for top in &index.manifests {
            let Some(image) = self.oci_image(top, MAX_HOPS)? else {
                continue;
            };
            let names = names_of(top);
            match images
                .iter_mut()
                .find(|other| other.configuration == image.configuration)
            {
                Some(same) => same.names.extend(names),
                None => images.push(Found { names, ..image }),
            }
        }
        if images.is_empty() {
            Err(bad("no image in it is for this machine".into()))
        } else {
            Ok(images)
        }
    }

    /// Follows indexes down to the manifest that suits this machine best; `None` if none does.
    fn oci_image(&self, at: &Descriptor, hops: usize) -> io::Result<Option<Found>> {
        let name = blob_name(&at.digest)?;
        let bytes = self.document(&name)?;
        if super::digest(&bytes) != at.digest {
            return Err(bad(format!("{name} does not have the digest in its name")));
        }
        let manifest: Manifest = parse(&name, &bytes)?;
        let Some(config) = manifest.config else {
            let machine = std::env::consts::ARCH;
            let fits = |one: &&Descriptor| one.platform.as_ref().is_none_or(|p| preference(p, machine).is_some());
            let rank = |one: &&Descriptor| one.platform.as_ref().and_then(|p| preference(p, machine));
            let best = manifest.manifests.iter().filter(fits).min_by_key(rank);
            return match (best, hops.checked_sub(1)) {
                (Some(best), Some(hops)) => self.oci_image(best, hops),
                _ => Ok(None),
            };
        };
        let configuration = self.document(&blob_name(&config.digest)?)?;
        if super::digest(&configuration) != config.digest {
            return Err(bad(format!("configuration {} is damaged", config.digest)));
        }
        // Attestations and charts are manifests too, but no configuration of theirs has layers to run.
        if serde_json::from_slice::<Configuration>(&configuration).is_err() {
            return Ok(None);
        }
        let layer = |layer: &Descriptor| Ok((blob_name(&layer.digest)?, Some(layer.digest.clone())));
        let layers = manifest.layers.iter().map(layer).collect::<io::Result<_>>()?;
        Ok(Some(Found {
            names: Vec::new(),
            configuration,
            layers,
        }))
    }
}

fn table(file: &File) -> io::Result<BTreeMap<String, Member>> {
    let mut members = BTreeMap::new();
    let end = file.metadata()?.len();
    let mut archive = tar::Archive::new(file.try_clone()?);
    for entry in archive.entries_with_seek().map_err(foreign)? {
        let entry = entry.map_err(|error| match error.raw_os_error() {
            Some(_) => error,
            // The parser quotes what it read, which may be anything.
            None => bad("it is no tar archive, or a damaged one".into()),
        })?;
        let path = entry.path_bytes();
        let Ok(name) = std::str::from_utf8(&path) else { continue };
        let name = clean(name);
        let kind = entry.header().entry_type();
        if kind.is_file() {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|last| last > end) {
                return Err(bad(format!("it ends in the middle of {name}")));
            }
            members.insert(name, Member::Data { offset, size });
        } else if let Some(link) = entry.link_name().map_err(foreign)? {
            // `docker save` of old writes a layer that occurs twice as a link beside the first one.
            let parent = Path::new(&name).parent().unwrap_or(Path::new(""));
            let target = if kind.is_symlink() {
                parent.join(&link)
            } else {
                link.into_owned()
            };
            members.insert(
                name,
                Member::Link(crate::sys::tree::lexical(&target)?.to_string_lossy().into_owned()),
            );
        }
        if members.len() > MAX_MEMBERS {
            return Err(bad("it has too many members".into()));
        }
    }
    Ok(members)
}

fn names_of(descriptor: &Descriptor) -> Vec<String> {
    let annotation = |key: &str| descriptor.annotations.get(key);
    let full = annotation("io.containerd.image.name").or_else(|| {
        // The OCI annotation is often no more than a tag, which names nothing.
        annotation("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']))
    });
    full.and_then(|name| reference::normalise(name)).into_iter().collect()
}

fn blob_name(digest: &str) -> io::Result<String> {
    if !reference::is_id(digest) {
        return Err(bad(format!("{digest:?} is no sha256 digest")));
    }
    Ok(format!("blobs/{}", digest.replace(':', "/")))
}

fn clean(name: &str) -> String {
    name.trim_start_matches("./").trim_start_matches('/').to_owned()
}

fn parse<T: serde::de::DeserializeOwned>(name: &str, bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| bad(format!("{name}: {error}")))
}

/// What is wrong with the archive itself.
pub fn bad(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// How a gzip stream begins.
pub const GZIP: [u8; 2] = [0x1f, 0x8b];
/// How a zstd frame begins.
pub const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// The first four bytes; shorter files give zeros.
fn magic(file: &mut File) -> io::Result<[u8; 4]> {
    let mut magic = Vec::new();
    file.take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    magic.resize(4, 0);
    Ok(magic.try_into().unwrap_or_default())
}

/// What a parser or decompressor says about its input, told apart from what the disk says.
pub fn foreign(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(_) => error,
        None if error.kind() == io::ErrorKind::StorageFull => error,
        None => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// A file without a name: gone when closed, whatever happens.
fn nameless(folder: &Path) -> io::Result<File> {
    use nix::fcntl::OFlag;
    use nix::sys::stat::Mode;
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(folder, flags, Mode::from_bits_truncate(0o600))?.into())
}
