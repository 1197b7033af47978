//! Images on disk: archives in, layer folders and records out.
//!
//! Layout under the data folder: `layers/CHAIN/{fs,size}` (CHAIN: 40 digits of the OCI chain id, short because overlay's
//! mount options must fit a page), `images/ID.json`, `tmp/`. A layer is complete when it has its name: it is unpacked in
//! `tmp`, the file system is synced once for the whole archive, then everything is renamed and records are written last.
//! All blocking: [`import`] runs in a re-executed child, so the agent's memory does not grow with an image.

mod archive;
pub mod record;
pub mod reference;
mod unpack;

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use nix::fcntl::{Flock, FlockArg};
use ring::digest::{Context, SHA256};

use self::archive::{Archive, Found, GZIP, ZSTD, bad, foreign};
use self::record::{Configuration, Record};

/// Room left on the disk for others whatever an image wants.
const KEEP_FREE: u64 = 64 << 20;
/// The kernel's bound on stacked folders is 500; images stop at 127 layers.
const MAX_LAYERS: usize = 127;
/// Held by whoever imports: one at a time.
const LOCK: &str = "images/.lock";

/// Makes the folders and removes what a crash left half done (not the work of an import that still runs).
pub fn prepare(data: &Path) -> io::Result<()> {
    for folder in ["tmp", "layers", "images"] {
        fs::create_dir_all(data.join(folder))?;
    }
    let lock = File::create(data.join(LOCK))?;
    match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
        Ok(_lock) => clear(&data.join("tmp")),
        Err(_) => Ok(()),
    }
}

/// Empties a folder.
fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// All records that can be read; a damaged one is as good as none (its image is imported again).
pub fn records(data: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for file in fs::read_dir(data.join("images"))? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "json")
            && let Ok(record) = serde_json::from_slice::<Record>(&fs::read(&path)?)
        {
            records.push(record);
        }
    }
    Ok(records)
}

/// The image that a reference or an id means.
pub fn find<'a>(records: &'a [Record], reference: &str) -> Option<&'a Record> {
    let full = reference::normalise(reference)?;
    records
        .iter()
        .find(|record| record.id == full || record.names.binary_search(&full).is_ok())
}

/// What an archive gave.
pub struct Imported {
    /// Names of the images taken in, ids where there are none.
    pub names: Vec<String>,
    /// What was passed over because it is for another machine: a line about each.
    pub strange: Vec<String>,
}

/// Takes in every image of an archive that this machine can run.
///
/// # Errors
/// `InvalidData` for what is wrong with the archive, else what the file system said.
pub fn import(data: &Path, path: &Path) -> io::Result<Imported> {
    let lock = File::create(data.join(LOCK))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let result = import_locked(data, path);
    // What was unpacked for nothing must not fill the disk until the next start.
    let cleared = clear(&data.join("tmp"));
    let (done, strange) = result?;
    cleared?;
    let names = |record: &Record| {
        if record.names.is_empty() {
            vec![record.id.clone()]
        } else {
            record.names.clone()
        }
    };
    let names = done.iter().flat_map(names).collect();
    Ok(Imported { names, strange })
}

fn import_locked(data: &Path, path: &Path) -> io::Result<(Vec<Record>, Vec<String>)> {
    let archive = Archive::open(path, &data.join("tmp"))?;
    let mut pending = Pending::default();
    let (mut done, mut strange) = (Vec::new(), Vec::new());
    for found in archive.images()? {
        match unpack_image(data, &archive, &found, &mut pending)? {
            Unpacked::Ours(record) => done.push(record),
            Unpacked::Strange(platform) => strange.push(format!("{}: it is for {platform}", found.names.join(", "))),
        }
    }
    if done.is_empty() && !strange.is_empty() {
        return Err(bad(strange.join("; ")));
    }
    commit(data, &pending, &done)?;
    Ok((done, strange))
}

/// Layers unpacked but not named yet.
#[derive(Default)]
struct Pending(Vec<String>);

/// What came of one image of an archive.
enum Unpacked {
    Ours(Record),
    /// For this other operating system or machine.
    Strange(String),
}

fn unpack_image(data: &Path, archive: &Archive, found: &Found, pending: &mut Pending) -> io::Result<Unpacked> {
    let id = digest(&found.configuration);
    let configuration: Configuration =
        serde_json::from_slice(&found.configuration).map_err(|error| bad(format!("configuration {id}: {error}")))?;
    let diff_ids = configuration.rootfs.diff_ids;
    if diff_ids.len() != found.layers.len() || diff_ids.len() > MAX_LAYERS {
        return Err(bad(format!(
            "{} layers, {} of them described",
            found.layers.len(),
            diff_ids.len()
        )));
    }
    let machine = record::Platform {
        architecture: configuration.architecture,
        os: configuration.os,
        ..Default::default()
    };
    // ARM variants are not in every configuration: only the family is compared.
    let runs = ["", "v8", "v7", "v6"].into_iter().any(|variant| {
        let platform = record::Platform {
            variant: variant.into(),
            ..machine.clone()
        };
        record::preference(&platform, std::env::consts::ARCH).is_some()
    });
    if !runs && !machine.architecture.is_empty() {
        return Ok(Unpacked::Strange(format!("{}/{}", machine.os, machine.architecture)));
    }
    let mut record = Record {
        id,
        names: found.names.clone(),
        process: configuration.config,
        ..Default::default()
    };
    record.names.sort();
    record.names.dedup();
    let mut chain = String::new();
    for (diff_id, (blob, stored)) in diff_ids.iter().zip(&found.layers) {
        chain = chain_id(&chain, diff_id);
        let name = folder_name(&chain);
        let home = [data.join("layers").join(&name), data.join("tmp").join(&name)];
        if let Some(known) = home.iter().find(|path| path.join("size").exists()) {
            record.size += read_size(known);
        } else {
            let lower: Vec<PathBuf> = record
                .layers
                .iter()
                .rev()
                .map(|below| layer_folder(data, below))
                .collect();
            let [_, tmp] = &home;
            record.size += unpack_layer(tmp, archive.blob(blob)?, stored.as_deref(), diff_id, &lower)?;
            pending.0.push(name.clone());
        }
        record.layers.push(name);
    }
    Ok(Unpacked::Ours(record))
}

fn layer_folder(data: &Path, name: &str) -> PathBuf {
    let home = data.join("layers").join(name).join("fs");
    if home.exists() {
        home
    } else {
        data.join("tmp").join(name).join("fs")
    }
}

/// Streams one layer into `tmp`, checking both its digests on the way.
fn unpack_layer(
    tmp: &Path,
    blob: impl Read,
    stored: Option<&str>,
    diff_id: &str,
    lower: &[PathBuf],
) -> io::Result<u64> {
    if tmp.exists() {
        fs::remove_dir_all(tmp)?;
    }
    let folder = tmp.join("fs");
    fs::create_dir_all(&folder)?;
    let (mut outer, mut inner) = (Context::new(&SHA256), Context::new(&SHA256));
    let mut blob = BufReader::with_capacity(
        64 << 10,
        Hashing {
            from: blob,
            context: &mut outer,
        },
    );
    let kind = io::BufRead::fill_buf(&mut blob)?
        .get(..4)
        .map(<[u8]>::to_vec)
        .unwrap_or_default();
    let plain: &mut dyn Read = if kind == ZSTD {
        return Err(bad("a layer is compressed with zstd, which is not supported yet".into()));
    } else if kind.starts_with(&GZIP) {
        &mut MultiGzDecoder::new(&mut blob)
    } else {
        &mut blob
    };
    let mut plain = Hashing {
        from: plain,
        context: &mut inner,
    };
    let bytes = unpack::unpack(&mut plain, &folder, lower, room(tmp)?)?;
    // The digest covers the padding after the archive's end too.
    io::copy(&mut plain, &mut io::sink()).map_err(foreign)?;
    io::copy(&mut blob, &mut io::sink())?;
    if text(inner) != diff_id || stored.is_some_and(|stored| text(outer) != stored) {
        return Err(bad(format!("layer {diff_id} is damaged: its digest differs")));
    }
    fs::write(tmp.join("size"), bytes.to_string())?;
    Ok(bytes)
}

/// One sync for all layers, then their names, then the records: a power cut leaves all of an image or nothing.
fn commit(data: &Path, pending: &Pending, records: &[Record]) -> io::Result<()> {
    let layers = File::open(data.join("layers"))?;
    if !pending.0.is_empty() {
        crate::sys::tree::sync_file_system(&layers)?;
        for name in &pending.0 {
            fs::rename(data.join("tmp").join(name), data.join("layers").join(name))?;
        }
        layers.sync_all()?;
    }
    for new in records {
        for mut old in self::records(data)? {
            let before = old.names.len();
            if old.id == new.id {
                let mut joined = new.clone();
                joined.names.extend(old.names);
                joined.names.sort();
                joined.names.dedup();
                write_record(data, &joined)?;
            } else {
                old.names.retain(|name| new.names.binary_search(name).is_err());
                if old.names.len() != before {
                    write_record(data, &old)?;
                }
            }
        }
        if !record_path(data, &new.id).exists() {
            write_record(data, new)?;
        }
    }
    Ok(())
}

fn record_path(data: &Path, id: &str) -> PathBuf {
    data.join("images")
        .join(format!("{}.json", id.trim_start_matches("sha256:")))
}

fn write_record(data: &Path, record: &Record) -> io::Result<()> {
    let path = record_path(data, &record.id);
    let tmp = path.with_extension("tmp");
    let mut file = File::create(&tmp)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_all()?;
    fs::rename(&tmp, &path)?;
    File::open(data.join("images"))?.sync_all()
}

/// Source: OCI image-spec v1.1, config.md "Layer ChainID".
fn chain_id(below: &str, diff_id: &str) -> String {
    if below.is_empty() {
        diff_id.to_owned()
    } else {
        digest(format!("{below} {diff_id}").as_bytes())
    }
}

fn folder_name(chain: &str) -> String {
    let hex = chain.trim_start_matches("sha256:");
    hex.chars().filter(char::is_ascii_hexdigit).take(40).collect()
}

fn read_size(layer: &Path) -> u64 {
    fs::read_to_string(layer.join("size"))
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

fn room(path: &Path) -> io::Result<u64> {
    // 32 bits on some machines.
    fn wide(number: impl Into<u64>) -> u64 {
        number.into()
    }
    let seen = nix::sys::statvfs::statvfs(path)?;
    let free = wide(seen.blocks_available()).saturating_mul(wide(seen.fragment_size()));
    Ok(free.saturating_sub(KEEP_FREE))
}

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    text(context)
}

fn text(context: Context) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in context.finish().as_ref() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

struct Hashing<'a, R> {
    from: R,
    context: &'a mut Context,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.context.update(buffer.get(..read).unwrap_or_default());
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
