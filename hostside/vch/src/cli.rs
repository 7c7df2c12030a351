//! The command line.

use crate::args::host::HostCommand;
use crate::args::serve::ServeArgs;
use crate::args::{MachineArgs, RunArgs, size, unsupported};
use crate::fork_command::ForkArgs;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Containers run as VMs
#[derive(Debug, Parser)]
#[command(name = "vch", version, propagate_version = true)]
pub struct Cli {
    /// State directory [default: $XDG_STATE_HOME/vch, or ~/.local/state/vch]
    #[arg(long, global = true, env = "VCH_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a new container
    #[command(
        disable_help_flag = true,
        override_usage = "vch run [OPTIONS] IMAGE [COMMAND [ARG...]]\n       vch run --resume NAME"
    )]
    Run(Box<RunArgs>),
    /// List containers
    Ls(ListArgs),
    /// Show everything known of containers, as JSON
    Inspect(NamesArgs),
    /// Remove containers
    Rm(RemoveArgs),
    /// Images in the store
    #[command(subcommand)]
    Image(ImageCommand),
    /// Serve the Docker Engine API for a VCH
    Serve(Box<ServeArgs>),
    /// Make running containers out of a running one
    Fork(ForkArgs),
    /// Templates that VMs are forked from
    #[command(subcommand)]
    Template(TemplateCommand),
    /// VCHs on vSphere
    #[command(subcommand)]
    Host(HostCommand),
    /// Say what this machine lacks
    Doctor(JsonArgs),
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Names only
    #[arg(short, long, conflicts_with = "json")]
    pub quiet: bool,
}

#[derive(Args, Debug)]
pub struct JsonArgs {
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct NamesArgs {
    /// Names, ids, or starts of ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub names: Vec<String>,
}

#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Also when the VM runs and nobody owns it
    #[arg(short, long)]
    pub force: bool,
    /// Names, ids, or starts of ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub names: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Bring an image into the store
    Import {
        /// oci:DIR[:TAG], oci-archive:FILE, docker-archive:FILE or dir:ROOTFS
        source: String,
        /// Name in the store
        #[arg(short, long, value_name = "REF")]
        tag: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List images
    Ls(ListArgs),
    /// Show everything known of images, as JSON
    Inspect {
        /// References
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Remove images
    Rm {
        /// References
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
    /// Give an image another name
    Tag {
        /// What it is called
        image: String,
        /// What it shall be called too
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// List templates, the one last used first
    Ls(ListArgs),
    /// Show everything known of templates, as JSON
    Inspect {
        /// Ids, or starts of ids
        #[arg(required = true, value_name = "TEMPLATE")]
        templates: Vec<String>,
    },
    /// Make the template that `vch run` with the same flags forks
    Build {
        /// Memory of the VM
        #[arg(short, long, value_name = "SIZE")]
        memory: Option<size::Size>,
        /// Processors of the VM; a fraction counts as a whole one
        #[arg(long, value_name = "NUMBER")]
        cpus: Option<f64>,
        #[command(flatten)]
        machine: Box<MachineArgs>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove templates; VMs forked from them run on
    Rm {
        /// Ids, or starts of ids
        #[arg(required = true, value_name = "TEMPLATE")]
        templates: Vec<String>,
    },
}

/// What is said and exited with when the command line is not understood: help and version are not
/// failures, `docker run`'s own status is 125.
pub fn refuse(error: &clap::Error) -> u8 {
    let flag = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => flag.as_str(),
        _ => "",
    };
    match unsupported::sentence(flag) {
        Some(sentence) => {
            eprintln!("vch: {sentence}.\nSee 'vch run --help'.");
            crate::failure::DAEMON
        }
        None => {
            // Nobody to tell when that fails.
            let _ = error.print();
            if error.use_stderr() {
                crate::failure::DAEMON
            } else {
                0
            }
        }
    }
}

/// What `vch run WORDS...` means.
#[cfg(test)]
pub fn parse_run(words: &[&str]) -> Result<RunArgs, clap::Error> {
    let words = ["vch", "run"].iter().chain(words);
    match Cli::try_parse_from(words)?.command {
        Command::Run(args) => Ok(*args),
        other => panic!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_command() {
        let cases: &[(&[&str], &str, &[&str])] = &[
            (&["img"], "img", &[]),
            (&["img", "sh", "-c", "true"], "img", &["sh", "-c", "true"]),
            (
                &["-it", "img", "-i", "--rm", "--", "x"],
                "img",
                &["-i", "--rm", "--", "x"],
            ),
            (&["--", "img", "--help"], "img", &["--help"]),
            (
                &["--rm", "img", "echo", "--state", "x"],
                "img",
                &["echo", "--state", "x"],
            ),
            (&["-e", "A=-1", "img", "-h"], "img", &["-h"]),
        ];
        for (words, image, command) in cases {
            let args = parse_run(words).unwrap();
            assert_eq!(args.image(), *image, "{words:?}");
            assert_eq!(args.command(), *command, "{words:?}");
        }
        assert!(parse_run(&["-it", "img", "-i"]).unwrap().tty);
        assert!(!parse_run(&["img", "-i"]).unwrap().interactive);
    }

    #[test]
    fn switches_take_a_value_only_after_an_equals_sign() {
        let args = parse_run(&[
            "-it",
            "--rm=false",
            "--init=true",
            "--sig-proxy=false",
            "img",
        ]);
        let args = args.unwrap();
        assert!(args.interactive && args.tty && args.init && !args.rm && !args.sig_proxy);
        let args = parse_run(&["--rm", "img"]).unwrap();
        assert!(args.rm && args.sig_proxy && !args.tty);
        assert_eq!(args.image(), "img");
    }

    #[test]
    fn short_h_is_the_hostname() {
        let args = parse_run(&["-h", "web", "img"]).unwrap();
        assert_eq!(args.hostname.as_deref(), Some("web"));
    }

    #[test]
    fn a_flag_of_docker_that_is_missing_is_named_with_its_reason() {
        for flag in ["--privileged", "-d", "--restart=always", "--mount"] {
            let error = parse_run(&[flag, "img"]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownArgument, "{flag}");
            let Some(ContextValue::String(named)) = error.get(ContextKind::InvalidArg) else {
                panic!("{flag} is not named in {error}");
            };
            let sentence = unsupported::sentence(named);
            assert!(sentence.is_some(), "{named} has no reason");
        }
        assert_eq!(unsupported::sentence("--bogus"), None);
        assert!(parse_run(&["--bogus", "img"]).is_err());
    }

    #[test]
    fn an_image_or_a_container_to_resume_must_be_named() {
        assert!(parse_run(&[]).is_err());
        assert!(parse_run(&["-it"]).is_err());
        assert!(parse_run(&["--resume", "web"]).is_ok());
        assert!(parse_run(&["--resume", "web", "img"]).is_err());
    }

    #[test]
    fn kernel_arguments_may_look_like_flags() {
        let args = parse_run(&["--append", "-x", "--append=quiet", "img"]).unwrap();
        assert_eq!(args.machine.vm.append, ["-x", "quiet"]);
    }
}
