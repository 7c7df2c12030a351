//! `vch`: containers run as VMs.
//!
//! This file only turns the command line into a call and its result into an exit status.

#![forbid(unsafe_code)]
#![allow(
    missing_docs,
    reason = "a binary: nobody links to it; what needs words has them"
)]

mod args;
mod cli;
mod containers;
mod cursor;
mod doctor;
mod failure;
mod foreground;
mod fork_command;
mod host_commands;
mod image_commands;
mod images;
mod input;
mod machine;
mod output;
mod paths;
mod plan;
#[cfg(test)]
mod plan_tests;
mod power;
mod progress;
mod record;
mod run;
mod run_directory;
mod serve;
mod signals;
mod simulated;
mod sink;
mod template_commands;
mod terminal;

use clap::Parser;
use cli::{Cli, Command};
use std::process::exit;

fn main() {
    terminal::restore_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => exit(cli::refuse(&error).into()),
    };
    let result = match cli.command {
        Command::Run(args) => run::run(cli.state.as_deref(), *args),
        Command::Ls(args) => containers::list(cli.state.as_deref(), &args),
        Command::Inspect(args) => containers::inspect(cli.state.as_deref(), &args),
        Command::Rm(args) => containers::remove(cli.state.as_deref(), &args),
        Command::Image(command) => image_commands::run(cli.state.as_deref(), command),
        Command::Serve(args) => serve::run(cli.state.as_deref(), *args),
        Command::Template(command) => template_commands::run(cli.state.as_deref(), command),
        Command::Fork(args) => fork_command::run(cli.state.as_deref(), &args),
        Command::Host(command) => host_commands::run(cli.state.as_deref(), command),
        Command::Doctor(args) => doctor::run(&args),
    };
    terminal::restore();
    let status = result.unwrap_or_else(|failure| {
        eprintln!("{failure}");
        failure.status
    });
    // Threads that wait for a terminal or a pipe have nothing left to do.
    exit(status.into());
}
