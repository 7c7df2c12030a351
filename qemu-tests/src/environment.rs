//! What all tests share: the program under test, the boot image, the images, the directory.

use crate::harness::{Options, Test, skip};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

/// What all tests share.
///
/// ```text
/// OUT/shared/          a state directory whose image store every test reads
/// OUT/NNN-NAME/        one test's
///   state/             its own state directory
///   state/images       the shared store
/// ```
#[derive(Debug)]
pub struct Environment {
    out: PathBuf,
    vch: PathBuf,
    boot_image: PathBuf,
    samples: PathBuf,
    source: PathBuf,
    templates: PathBuf,
    full: bool,
    keep: bool,
    imported: Mutex<BTreeMap<String, Arc<Mutex<Import>>>>,
}

/// Whether a sample is in the shared store.
#[derive(Clone, Debug)]
enum Import {
    NotYet,
    Done,
    Missing(String),
    Failed(String),
}

impl Environment {
    /// Looks whether everything is there.
    ///
    /// # Errors
    /// What is missing, and how it is made.
    pub fn prepare(options: &Options) -> Result<Self> {
        let vch = find_program(&options.vch)?;
        let Some(boot_image) = &options.boot_image else {
            bail!(
                "no boot image: set VCH_BOOT_IMAGE or --boot-image to what scripts/boot-image prints"
            );
        };
        let boot_image = boot_image
            .canonicalize()
            .with_context(|| format!("there is no boot image {}", boot_image.display()))?;
        for file in ["bzImage", "initramfs.cpio", "tether.iso"] {
            if !boot_image.join(file).is_file() {
                bail!(
                    "{} has no {file}: run scripts/boot-image",
                    boot_image.display()
                );
            }
        }
        let samples = match &options.samples {
            Some(samples) => samples.clone(),
            None => cache()?.join("samples"),
        };
        let out = match &options.out {
            Some(out) => {
                std::fs::create_dir_all(out)
                    .with_context(|| format!("cannot make {}", out.display()))?;
                out.canonicalize()?
            }
            None => tempfile::Builder::new()
                .prefix("qemu-tests-")
                .tempdir()
                .context("cannot make a temporary directory")?
                .keep(),
        };
        std::fs::create_dir_all(out.join("shared/images"))
            .with_context(|| format!("cannot write to {}", out.display()))?;
        let templates = tempfile::Builder::new()
            .prefix("qemu-tests-")
            .tempdir_in("/dev/shm")
            .context("cannot make a directory on /dev/shm for templates")?
            .keep();
        Ok(Self {
            templates,
            out,
            vch,
            boot_image,
            samples,
            source: options.source.clone(),
            full: options.full,
            keep: options.keep || options.out.is_some(),
            imported: Mutex::default(),
        })
    }

    /// The program under test.
    pub fn vch(&self) -> &Path {
        &self.vch
    }

    /// The directory with bzImage, initramfs.cpio and tether.iso.
    pub fn boot_image(&self) -> &Path {
        &self.boot_image
    }

    /// The OCI layout of a sample image.
    pub fn sample_layout(&self, name: &str) -> PathBuf {
        self.samples.join(name)
    }

    /// The project's sources.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// Where everything is.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// The image store that all tests read.
    pub fn images(&self) -> PathBuf {
        self.shared().join("images")
    }

    fn shared(&self) -> PathBuf {
        self.out.join("shared")
    }

    /// Where the templates are that all tests fork from. A test that looks at templates has its own
    /// below it.
    pub fn templates(&self) -> &Path {
        &self.templates
    }

    /// Whether tests that take very long are run.
    pub fn full(&self) -> bool {
        self.full
    }

    /// Makes a test's directory.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn test_directory(&self, index: usize, test: &Test) -> Result<PathBuf> {
        let slug: String = test
            .title()
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .take(48)
            .collect();
        let directory = self
            .out
            .join(format!("{:03}-{}", index + 1, slug.trim_end_matches('-')));
        let make = || {
            if directory.exists() {
                std::fs::remove_dir_all(&directory)?;
            }
            std::fs::create_dir_all(directory.join("state"))?;
            std::os::unix::fs::symlink(self.images(), directory.join("state/images"))
        };
        make().with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(directory)
    }

    /// Removes the directory of a test that has nothing more to say.
    pub fn drop_directory(&self, directory: &Path) {
        if !self.keep {
            // What stays is in the way of nobody.
            let _ = std::fs::remove_dir_all(directory);
        }
    }

    /// Removes what is left when nothing is to be looked at.
    pub fn finish(&self, all_passed: bool) {
        // Memory, which says nothing of a test that failed.
        let _ = std::fs::remove_dir_all(&self.templates);
        if all_passed && !self.keep {
            let _ = std::fs::remove_dir_all(&self.out);
        }
    }

    /// Sees to it that the store has `sample/NAME`.
    ///
    /// # Errors
    /// A skip when the sample was not made; whatever `vch image import` said.
    pub fn need_sample(&self, name: &str) -> Result<()> {
        let import = self
            .imported
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.to_owned())
            .or_insert_with(|| Arc::new(Mutex::new(Import::NotYet)))
            .clone();
        let mut import = import.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*import, Import::NotYet) {
            *import = self.import(name);
        }
        match &*import {
            Import::Done => Ok(()),
            Import::Missing(why) => skip(why),
            Import::Failed(why) => bail!("{why}"),
            Import::NotYet => bail!("sample/{name} was not imported"),
        }
    }

    fn import(&self, name: &str) -> Import {
        let layout = self.sample_layout(name);
        if !layout.is_dir() {
            return Import::Missing(format!(
                "there is no sample/{name}: run scripts/sample-image {name}"
            ));
        }
        let layout = format!("oci:{}", layout.display());
        let tag = format!("sample/{name}");
        let output = Command::new(&self.vch)
            .arg("--state")
            .arg(self.shared())
            .args(["image", "import", "--tag", &tag, &layout])
            .stdin(Stdio::null())
            .output();
        match output {
            Ok(output) if output.status.success() => Import::Done,
            Ok(output) => Import::Failed(format!(
                "vch image import {layout}: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            )),
            Err(error) => Import::Failed(format!("cannot run {}: {error}", self.vch.display())),
        }
    }
}

/// The artifacts' cache, as the scripts have it.
fn cache() -> Result<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(cache) = variable("TETHER_CACHE") {
        return Ok(cache);
    }
    variable("XDG_CACHE_HOME")
        .or_else(|| Some(variable("HOME")?.join(".cache")))
        .map(|cache| cache.join("tether"))
        .context("no cache directory: set HOME or TETHER_CACHE")
}

/// A program by path, or by name in `PATH`.
fn find_program(name: &Path) -> Result<PathBuf> {
    if name.components().count() > 1 {
        return name
            .canonicalize()
            .with_context(|| format!("there is no program {}", name.display()));
    }
    program(&name.to_string_lossy())
        .with_context(|| format!("no {} in PATH: set VCH or --vch", name.display()))
}

/// Where in `PATH` (or where Debian keeps what only root needs) a program is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}
