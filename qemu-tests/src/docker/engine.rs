//! A `vch serve` of a test's own.

use super::request::{self, Answer};
use super::simulator::{Kind, Simulator};
use crate::environment::program;
use crate::harness::{Context, skip};
use crate::terminal::Terminal;
use crate::vch::{Done, Running, Vch};
use anyhow::{Context as _, Result};
use rustix::process::Signal;
use std::cell::RefCell;
use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;

/// What the machines behind the endpoint are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// Played in the process; everything about the endpoint and the port layer, in no time.
    Fake,
    /// Real guests.
    Qemu,
    /// Real guests behind a simulated vCenter's machines.
    Vsphere,
    /// The same on a simulated ESXi host without a vCenter.
    Esxi,
}

/// The word for it that `vch serve --driver` takes.
impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fake => "fake",
            Self::Qemu => "qemu",
            Self::Vsphere | Self::Esxi => "vsphere",
        })
    }
}

/// A VCH that is served, with `sample/busybox` in an image store of its own.
#[derive(Debug)]
pub struct Docker<'a> {
    test: &'a Context,
    serve: RefCell<Option<Running>>,
    flags: Vec<String>,
    simulator: Option<Simulator>,
}

impl<'a> Docker<'a> {
    /// Imports the image and starts serving.
    ///
    /// # Errors
    /// A skip when there is no `docker`; else why it does not serve.
    pub fn serve(test: &'a Context) -> Result<Self> {
        Self::serve_with(test, &[])
    }

    /// The same with further flags of `vch serve`.
    ///
    /// # Errors
    /// As [`serve`](Self::serve).
    pub fn serve_with(test: &'a Context, flags: &[&str]) -> Result<Self> {
        if program("docker").is_none() {
            return skip("there is no docker command line: install the package docker-cli");
        }
        // The harness's store is everyone's; these tests tag and remove.
        let images = test.state().join("images");
        if images.is_symlink() {
            std::fs::remove_file(&images)?;
        }
        let simulator = match test.driver() {
            Driver::Fake | Driver::Qemu => None,
            Driver::Vsphere => Some(Simulator::start(test, Kind::VCenter)?),
            Driver::Esxi => Some(Simulator::start(test, Kind::Esxi)?),
        };
        if let Some(simulator) = &simulator {
            simulator.make_vch(test, "default")?;
        }
        let docker = Self {
            test,
            serve: RefCell::default(),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
            simulator,
        };
        docker.import("busybox")?;
        docker.start_serving()?;
        Ok(docker)
    }

    /// Puts `sample/NAME` into the store.
    ///
    /// # Errors
    /// A skip when the sample was not made.
    pub fn import(&self, sample: &str) -> Result<()> {
        let layout = self.test.environment().sample_layout(sample);
        if !layout.is_dir() {
            return skip(format!(
                "there is no sample/{sample}: run scripts/sample-image {sample}"
            ));
        }
        let (tag, layout) = (
            format!("sample/{sample}"),
            format!("oci:{}", layout.display()),
        );
        self.test
            .vch(["image", "import", "--tag", &tag, &layout])
            .done()?
            .status(0);
        Ok(())
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.test.file("docker.sock")
    }

    /// Serves (again).
    ///
    /// # Errors
    /// It cannot be started.
    ///
    /// # Panics
    /// It ended instead.
    pub fn start_serving(&self) -> Result<()> {
        let host = format!("unix://{}", self.socket().display());
        let driver = self.test.driver().to_string();
        let words = ["serve", "--host", &host, "--driver", &driver];
        let flags = self.flags.iter().map(String::as_str);
        let of_server = self.simulator.iter().flat_map(Simulator::flags);
        let words = words.into_iter().chain(of_server).chain(flags);
        let serve = self.test.vch(words);
        let serve = match &self.simulator {
            None => serve,
            Some(simulator) => simulator.tell(serve),
        };
        let serve = serve.spawn()?;
        serve.expect_error("listening");
        *self.serve.borrow_mut() = Some(serve);
        Ok(())
    }

    /// Waits until what serves has said this in its log; all of the log so far.
    ///
    /// # Errors
    /// Nobody serves.
    ///
    /// # Panics
    /// It never said so.
    #[track_caller]
    pub fn serving_says(&self, text: &str) -> Result<String> {
        let serve = self.serve.borrow();
        let serve = serve.as_ref().context("nobody serves")?;
        serve.expect_error(text);
        Ok(serve.error_so_far())
    }

    /// The same, where a test connects to published ports.
    ///
    /// # Errors
    /// As [`serve`](Self::serve); a skip where this machine is not on the guests' network.
    pub fn serve_published(test: &'a Context) -> Result<Self> {
        let docker = Self::serve(test)?;
        let reached = docker.simulator.as_ref().map(Simulator::reaches_guests);
        if reached == Some(false) {
            docker.end()?;
            return skip(
                "the simulator's port groups are a network of this machine only where root has /dev/net/tun",
            );
        }
        Ok(docker)
    }

    /// Makes another VCH beside this one, where that is something that has to be made.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn make_vch(&self, name: &str) -> Result<()> {
        let simulator = self.simulator.as_ref();
        simulator.map_or(Ok(()), |simulator| simulator.make_vch(self.test, name))
    }

    /// Removes it.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn delete_vch(&self, name: &str) -> Result<()> {
        let simulator = self.simulator.as_ref();
        simulator.map_or(Ok(()), |simulator| simulator.delete_vch(self.test, name))
    }

    /// `vch serve` of another VCH, to be told where it listens.
    pub fn serve_other(&self, name: &str, host: &str) -> Vch {
        let driver = self.test.driver().to_string();
        let mut words = vec!["serve", "--name", name, "--host", host, "--driver", &driver];
        match &self.simulator {
            None => self.test.vch(words),
            Some(simulator) => {
                // A concentrator of its own, too.
                words.extend(["--concentrator", "127.0.0.1:0"]);
                simulator.tell(self.test.vch(words))
            }
        }
    }

    /// The URL of the server that the VCH is on, and who logs in; `None` where there is no such thing.
    pub fn server_and_user(&self) -> Option<[&str; 2]> {
        self.simulator.as_ref().map(Simulator::server_and_user)
    }

    /// The process that serves.
    ///
    /// # Errors
    /// Nobody serves.
    pub fn serving_pid(&self) -> Result<u32> {
        let serve = self.serve.borrow();
        Ok(serve.as_ref().context("nobody serves")?.pid())
    }

    fn take(&self) -> Result<Running> {
        self.serve.borrow_mut().take().context("nobody serves")
    }

    /// Ends serving as an operator does; the containers run on.
    ///
    /// # Errors
    /// Nobody serves.
    pub fn stop_serving(&self) -> Result<()> {
        let mut serve = self.take()?;
        serve.signal(Signal::TERM)?;
        serve.wait()?.status(0);
        Ok(())
    }

    /// `kill -9` of the one that serves.
    ///
    /// # Errors
    /// Nobody serves.
    pub fn kill_serving(&self) -> Result<()> {
        self.take()?.kill()?;
        Ok(())
    }

    /// Removes every container and ends serving. What still runs after that fails the test.
    ///
    /// # Errors
    /// `docker` cannot be run.
    pub fn end(self) -> Result<()> {
        let all = self.ok(["ps", "-aq", "--no-trunc"])?;
        if !all.is_empty() {
            let words = ["rm", "-f"].into_iter().chain(all.lines());
            self.cmd(words).done()?.status(0);
        }
        assert_eq!(self.ok(["ps", "-aq"])?, "");
        self.stop_serving()?;
        match &self.simulator {
            None => Ok(()),
            Some(simulator) => {
                simulator.delete_vch(self.test, "default")?;
                simulator.must_be_empty(self.test)
            }
        }
    }

    /// `docker ARGUMENTS...`
    pub fn cmd<I>(&self, arguments: I) -> Vch
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.test
            .vch(arguments)
            .program("docker")
            .variable("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .variable("DOCKER_CONFIG", self.test.file("docker-config"))
            .variable("DOCKER_CLI_HINTS", "false")
    }

    /// `vch ARGUMENTS...`, for this endpoint.
    pub fn vch<I>(&self, arguments: I) -> Vch
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let host = format!("unix://{}", self.socket().display());
        self.test.vch(arguments).variable("DOCKER_HOST", host)
    }

    /// `docker ARGUMENTS...` to its end.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn done<I>(&self, arguments: I) -> Result<Done>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.cmd(arguments).done()
    }

    /// What `docker ARGUMENTS...` said, without the last newline; it ended with 0.
    ///
    /// # Errors
    /// It cannot be run.
    #[track_caller]
    pub fn ok<I>(&self, arguments: I) -> Result<String>
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let done = self.done(arguments)?;
        done.status(0);
        Ok(done.text().trim_end_matches('\n').to_owned())
    }

    /// What `docker inspect --format FORMAT NAME` said.
    ///
    /// # Errors
    /// It cannot be run.
    #[track_caller]
    pub fn inspect(&self, name: &str, format: &str) -> Result<String> {
        self.ok(["inspect", "--format", format, name])
    }

    /// `docker run -d FLAGS... sample/busybox sh -c SCRIPT`; its id.
    ///
    /// # Errors
    /// It cannot be run.
    #[track_caller]
    pub fn detached(&self, flags: &[&str], script: &str) -> Result<String> {
        let words = [
            &["run", "-d"],
            flags,
            &["sample/busybox", "sh", "-c", script],
        ];
        self.ok(words.concat())
    }

    /// A container of this name that lasts and ends at once when told to.
    ///
    /// # Errors
    /// It cannot be run.
    #[track_caller]
    pub fn lasting(&self, name: &str, flags: &[&str]) -> Result<String> {
        let flags = [&["--name", name, "--stop-signal", "KILL"], flags].concat();
        self.detached(&flags, "sleep 100000")
    }

    /// `docker ARGUMENTS...` on a terminal.
    pub fn on<I>(&self, terminal: &Terminal, arguments: I) -> Vch
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.cmd(arguments).variable("TERM", "xterm").on(terminal)
    }

    /// One request without a client between.
    ///
    /// # Errors
    /// The endpoint does not answer.
    pub fn request(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        request::send(&self.socket(), method, path, body)
    }
}
