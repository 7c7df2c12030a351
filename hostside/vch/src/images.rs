//! Images for `vch run` and `vch image`: finding them in the store, bringing them in.

use crate::paths::State;
use crate::plan::ImageConfig;
use crate::progress;
use anyhow::{Context, Result};
use image::import::Options;
use image::progress::{Phase, Progress, Silent};
use image::reference::{Name, Reference, Source};
use image::store::{ImageRecord, Store};

/// The store of this state directory.
///
/// # Errors
/// It cannot be opened.
pub fn store(state: &State) -> Result<Store> {
    Ok(Store::open(&state.images())?)
}

/// The image that IMAGE names: one in the store, or one that is brought in first.
///
/// # Errors
/// There is none of that name, or it cannot be imported.
pub fn resolve(store: &Store, text: &str) -> Result<ImageRecord> {
    match text.parse::<Reference>()? {
        Reference::Stored(name) => Ok(store.inspect(&name)?),
        Reference::Source(source) => import(store, &source, None),
    }
}

/// Brings an image in, showing how far it is.
///
/// # Errors
/// It cannot be imported.
pub fn import(store: &Store, source: &Source, name: Option<&Name>) -> Result<ImageRecord> {
    use std::io::IsTerminal;
    let options = Options::default();
    let record = if std::io::stderr().is_terminal() {
        let shown = Shown(progress::Progress::spinner(&format!("importing {source}")));
        store.import(source, name, &options, &shown)
    } else {
        store.import(source, name, &options, &Silent)
    };
    Ok(record?)
}

/// An import on a terminal.
struct Shown(progress::Progress);

impl Progress for Shown {
    fn phase(&self, phase: &Phase, bytes: Option<u64>) {
        let what = match phase {
            Phase::Index => "reading the archive".to_owned(),
            Phase::Layer { number, count, .. } => format!("layer {number} of {count}"),
            Phase::Directory => "copying".to_owned(),
            Phase::Finish => "finishing the disk".to_owned(),
        };
        self.0.phase(what, bytes);
    }

    fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }
}

/// What an image says about its containers.
pub fn config(record: &ImageRecord) -> ImageConfig {
    let config = &record.config.config;
    ImageConfig {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        working_dir: config.working_dir.clone(),
        user: config.user.clone(),
        stop_signal: config.stop_signal.clone(),
        labels: config.labels.clone(),
    }
}

/// Refuses an image for other machines.
///
/// # Errors
/// Its architecture or operating system is another one.
pub fn check_platform(record: &ImageRecord, text: &str) -> Result<()> {
    let config = &record.config;
    let known = |given: &str, ours: &str| given.is_empty() || given == ours;
    if known(&config.architecture, "amd64") && known(&config.os, "linux") {
        return Ok(());
    }
    anyhow::bail!(
        "image {text} is for {}/{}, and only linux/amd64 runs here",
        config.os,
        config.architecture
    )
}

/// A name as a user writes it.
///
/// # Errors
/// It is no name.
pub fn name(text: &str) -> Result<Name> {
    text.parse().context("cannot use that name")
}
