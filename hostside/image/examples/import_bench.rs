//! Times the import of an image beside the way without this crate: `import_bench oci:DIR[:TAG] [REPEATS]`.
//!
//! The baseline is `tar x` of every layer into a directory and `mkfs.ext4 -d` of that into a sparse file
//! of the same size; like the import it is not done before the result is on the disk (`fsync`). Both
//! run in turn, REPEATS times (5), in a temporary directory (`TMPDIR`). Prints one JSON object; times are
//! in seconds, wall clock and processor, and ratios are baseline over ours.

use std::fs::File;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use image::import::Options;
use image::oci::{self, DirectoryLayout};
use image::progress::Silent;
use image::reference::Source;
use image::store::Store;
use image::stream::Compression;
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

/// Processor seconds of this process and its children that have ended.
fn processor() -> Result<f64, Failure> {
    let text = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = text
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    // utime, stime, cutime, cstime of proc_pid_stat(5), in ticks of 10 ms.
    let ticks: u64 = fields
        .get(11..15)
        .unwrap_or_default()
        .iter()
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(ticks as f64 / 100.0)
}

fn command(program: &str, args: &[&str]) -> Result<(), Failure> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{program} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    )
    .into())
}

fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str().ok_or_else(|| "a path is not UTF-8".into())
}

fn ours(source: &Source, directory: &Path) -> Result<(), Failure> {
    Store::open(directory)?.import(source, None, &Options::default(), &Silent)?;
    Ok(())
}

fn baseline(layers: &[(String, Compression)], directory: &Path) -> Result<(), Failure> {
    let root = directory.join("root");
    std::fs::create_dir_all(&root)?;
    for (layer, compression) in layers {
        let unpack = match compression {
            Compression::None => "--no-auto-compress",
            Compression::Gzip => "--gzip",
            Compression::Zstd => "--zstd",
        };
        command(
            "tar",
            &[
                "-C",
                text(&root)?,
                unpack,
                "--xattrs",
                "--xattrs-include=*",
                "--numeric-owner",
                "-xpf",
                layer,
            ],
        )?;
    }
    let disk = directory.join("disk");
    command(
        "/sbin/mkfs.ext4",
        &[
            "-q",
            "-F",
            "-L",
            "image",
            "-d",
            text(&root)?,
            text(&disk)?,
            "10G",
        ],
    )?;
    File::open(&disk)?.sync_all()?;
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run(args: &[String]) -> Result<(), Failure> {
    let usage = "usage: import_bench oci:DIR[:TAG] [REPEATS]";
    let source: Source = args.first().ok_or(usage)?.parse()?;
    let repeats: usize = args.get(1).map_or(Ok(5), |text| text.parse())?;
    let Source::Oci { path, tag } = &source else {
        return Err(usage.into());
    };
    let image = oci::resolve(&DirectoryLayout(path.clone()), tag.as_deref(), 512)?;
    let blobs = path.join("blobs/sha256");
    let mut layers = Vec::new();
    for layer in &image.layers {
        layers.push((
            text(&blobs.join(layer.digest.hex()))?.to_owned(),
            layer.compression,
        ));
    }
    let base = std::env::temp_dir().join(format!("import-bench-{}", std::process::id()));
    let mut times = [const { Vec::new() }; 4];
    let mut measure = || -> Result<(), Failure> {
        for repeat in 0..repeats.max(1) {
            for (which, name) in ["ours", "baseline"].into_iter().enumerate() {
                let directory = base.join(format!("{name}-{repeat}"));
                std::fs::create_dir_all(&directory)?;
                let (start, before) = (Instant::now(), processor()?);
                match which {
                    0 => ours(&source, &directory)?,
                    _ => baseline(&layers, &directory)?,
                }
                times[which].push(start.elapsed().as_secs_f64());
                times[2 + which].push(processor()? - before);
                std::fs::remove_dir_all(&directory)?;
            }
        }
        Ok(())
    };
    let measured = measure();
    std::fs::remove_dir_all(&base)?;
    measured?;
    let runs = json!({"ours": times[0], "baseline": times[1]});
    let [ours, baseline, ours_processor, baseline_processor] = times.map(median);
    let result = json!({
        "bench": "image-import",
        "image": source.to_string(),
        "layers_bytes": image.layers.iter().map(|layer| layer.size).sum::<u64>(),
        "repeats": repeats.max(1),
        "seconds": {"ours": ours, "baseline": baseline, "ratio": baseline / ours},
        "processor_seconds": {
            "ours": ours_processor, "baseline": baseline_processor, "ratio": baseline_processor / ours_processor,
        },
        "runs": runs,
        "baseline": "tar x + mkfs.ext4 -d + fsync",
    });
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("import_bench: {error}");
            ExitCode::FAILURE
        }
    }
}
