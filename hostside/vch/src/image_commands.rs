//! `vch image ...`.

use crate::cli::{ImageCommand, ListArgs};
use crate::failure::Failure;
use crate::images;
use crate::paths::State;
use anyhow::{Context, Result};
use image::reference::{Reference, Source};
use image::store::{ImageRecord, Removal, Store};
use serde::Serialize;
use std::io::Write;
use std::path::Path;

/// Runs one of them; gives the exit status.
pub fn run(state: Option<&Path>, command: ImageCommand) -> Result<u8, Failure> {
    let store = images::store(&State::open(state)?)?;
    match command {
        ImageCommand::Import { source, tag, json } => import(&store, &source, tag.as_deref(), json),
        ImageCommand::Ls(args) => list(&store, &args),
        ImageCommand::Inspect { images } => {
            let records = images
                .iter()
                .map(|image| Ok(store.inspect(image)?))
                .collect::<Result<Vec<_>>>()?;
            print_json(&records)
        }
        ImageCommand::Rm { images } => remove(&store, &images),
        ImageCommand::Tag { image, name } => {
            store.tag(&image, &images::name(&name)?)?;
            Ok(())
        }
    }?;
    Ok(0)
}

fn import(store: &Store, source: &str, tag: Option<&str>, json: bool) -> Result<()> {
    let source = match source.parse::<Reference>()? {
        Reference::Source(source) => source,
        // Says which transports there are.
        Reference::Stored(_) => source.parse::<Source>()?,
    };
    let name = tag.map(images::name).transpose()?;
    let record = images::import(store, &source, name.as_ref())?;
    if json {
        print_json(&record)
    } else {
        print(&format!("{}\n", record.id))
    }
}

fn list(store: &Store, args: &ListArgs) -> Result<()> {
    let records = store.list()?;
    if args.json {
        return print_json(&records);
    }
    if args.quiet {
        let ids: String = records.iter().map(|r| format!("{}\n", r.id)).collect();
        return print(&ids);
    }
    let mut rows = vec![["NAME", "ID", "SIZE", "ON DISK", "SOURCE"].map(str::to_owned)];
    for record in &records {
        let names = match &record.names[..] {
            [] => vec!["<none>".to_owned()],
            names => names.iter().map(ToString::to_string).collect(),
        };
        for name in names {
            rows.push(row(record, name));
        }
    }
    print(&table(&rows))
}

fn row(record: &ImageRecord, name: String) -> [String; 5] {
    [
        name,
        record.id.hex().chars().take(12).collect(),
        human(record.size),
        human(record.stored),
        record.source.clone(),
    ]
}

fn remove(store: &Store, names: &[String]) -> Result<()> {
    for name in names {
        let removed = store.remove(name, Removal::Unforced)?;
        for name in removed.untagged {
            print(&format!("untagged: {name}\n"))?;
        }
        if let Some(id) = removed.deleted {
            print(&format!("deleted: {id}\n"))?;
        }
    }
    Ok(())
}

/// Columns as wide as what is in them.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}   "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A number of bytes for people.
pub fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() == 0.0 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// Prints to standard output; a reader that has gone is no error.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write standard output")
        }
        _ => Ok(()),
    }
}

/// Prints a value as indented JSON.
pub fn print_json<T: Serialize + ?Sized>(value: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    print(&format!("{text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["A", "B"], ["long", ""], ["x", "y"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "A      B\nlong\nx      y\n");
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
