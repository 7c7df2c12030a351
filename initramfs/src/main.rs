//! Writes an initramfs or a boot ISO from files.
#![forbid(unsafe_code)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bootimage::{
    CommandLine, Content, Date, Error, Isolinux, check_bootable, check_static, efi_application,
    iso, newc,
};
use clap::{Parser, Subcommand};

/// Writes the boot image of a containerVM; the same inputs give the same bytes.
///
/// Dates come from SOURCE_DATE_EPOCH, else the start of 1970.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    image: Image,
}

#[derive(Subcommand)]
enum Image {
    /// Write the initramfs: a newc archive that holds one program as /init
    Cpio {
        /// The program, statically linked for x86-64
        #[arg(long, value_name = "FILE")]
        init: PathBuf,
        /// Where the archive goes
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Write the ISO that BIOS (isolinux) and UEFI firmware boot
    Iso {
        /// The kernel, a bzImage with EFI_STUB
        #[arg(long, value_name = "FILE")]
        kernel: PathBuf,
        /// The initramfs
        #[arg(long, value_name = "FILE")]
        initramfs: PathBuf,
        /// Directory that holds isolinux.bin and ldlinux.c32 (BIOS) of one release
        #[arg(long, value_name = "DIR")]
        isolinux: PathBuf,
        /// The EFI loader that becomes EFI/BOOT/BOOTX64.EFI: an EFI application, or an ELF
        /// program linked like efi-loader/
        #[arg(long, value_name = "FILE")]
        efi: PathBuf,
        /// The kernel command line
        #[arg(
            long,
            value_name = "ARGS",
            default_value = "",
            allow_hyphen_values = true
        )]
        append: String,
        /// Where the ISO goes
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().image {
        Image::Cpio { init, out } => {
            let init = Content::open(&init)?;
            check_static(&init)?;
            write(&out, |file| newc::write(&init, file))
        }
        Image::Iso {
            kernel,
            initramfs,
            isolinux,
            efi,
            append,
            out,
        } => {
            let kernel = Content::open(&kernel)?;
            check_bootable(&kernel)?;
            let part = |name| Content::open(&isolinux.join(name));
            let iso = iso::BootIso::plan(iso::Contents {
                kernel,
                initramfs: Content::open(&initramfs)?,
                efi_loader: efi_application(&Content::open(&efi)?)?,
                isolinux: Isolinux::new(&part("isolinux.bin")?, &part("ldlinux.c32")?)?,
                command_line: CommandLine::new(&append)?,
                date: date()?,
            })?;
            write(&out, |file| iso.write(file))
        }
    }
}

fn date() -> Result<Date> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(Date::EPOCH);
    };
    let seconds = text
        .to_str()
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("SOURCE_DATE_EPOCH is {text:?}, not a number of seconds"))?;
    Ok(Date::from_epoch(seconds))
}

/// Writes beside `out` and renames, so that `out` is whole or as it was.
fn write(out: &Path, image: impl FnOnce(&mut BufWriter<File>) -> Result<(), Error>) -> Result<()> {
    let mut name = out.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = PathBuf::from(name);
    let result = (|| {
        let file = File::create(&part).context("cannot create it")?;
        let mut file = BufWriter::with_capacity(1 << 18, file);
        image(&mut file)?;
        file.flush().context("cannot write it")?;
        fs::rename(&part, out).context("cannot put it in place")
    })();
    if result.is_err() {
        // Whatever failed is the error to report; the part may not exist.
        let _ = fs::remove_file(&part);
    }
    result.with_context(|| format!("{} was not written", out.display()))
}
