//! Imports an image into a store and prints its record: `import STORE SOURCE [NAME] [CHILD]`.

use std::path::Path;
use std::process::ExitCode;

use image::import::Options;
use image::progress::Silent;
use image::store::Store;

fn run(args: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let [store, source, rest @ ..] = args else {
        return Err("usage: import STORE SOURCE [NAME] [CHILD]".into());
    };
    let store = Store::open(Path::new(store))?;
    let name = rest.first().map(|name| name.parse()).transpose()?;
    let record = store.import(
        &source.parse()?,
        name.as_ref(),
        &Options::default(),
        &Silent,
    )?;
    println!("{}", serde_json::to_string_pretty(&record)?);
    if let Some(child) = rest.get(1) {
        store.child(&record.id, "example", Path::new(child))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Err(error) = run(&args) else {
        return ExitCode::SUCCESS;
    };
    eprint!("import: {error}");
    let mut source = error.source();
    while let Some(error) = source {
        eprint!(": {error}");
        source = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}
