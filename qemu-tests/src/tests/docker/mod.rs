//! The stock `docker` command line against `vch serve`.
//!
//! The same scripts run on machines that are only played, all of them and in seconds, and on real guests:
//! by default those that show something only a guest can, with `--full` all.

mod commit;
mod copy;
mod events;
mod exec;
mod formats;
mod health;
mod images;
mod interaction;
mod killed;
mod lifecycle;
mod listening;
mod live_fork;
mod logs;
mod names;
mod observe;
mod parallel;
mod restart;
mod sdk;
mod software;
mod spares;
mod status;
mod system;
mod vsphere;

use crate::harness::{Context, Test};

/// The image of most tests.
const IMAGE: &str = "sample/busybox";

/// A test and the machines it runs on.
#[derive(Clone)]
struct Case {
    test: Test,
    on: On,
    vsphere: OnVsphere,
    /// Also on an ESXi host without a vCenter.
    esxi: bool,
}

/// Whether it runs on guests behind a simulated vCenter.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnVsphere {
    /// By default.
    Too,
    /// With `--full`.
    Full,
    /// It is about what that has not got.
    Never,
}

#[derive(Clone, Copy)]
enum On {
    /// The fake; real guests with `--full`.
    Fake,
    /// The fake and real guests.
    Both,
    /// Real guests only: the fake has nothing to say about it.
    Guests,
    /// None of them.
    Neither,
}

impl Case {
    const fn new(
        group: &'static str,
        name: &'static str,
        body: fn(&Context) -> anyhow::Result<()>,
    ) -> Self {
        Self {
            test: Test::new(group, name, body),
            on: On::Fake,
            vsphere: OnVsphere::Full,
            esxi: false,
        }
    }

    /// By default on a simulated ESXi host as well.
    const fn esxi_too(mut self) -> Self {
        self.esxi = true;
        self
    }

    /// By default behind a simulated vCenter as well.
    const fn vsphere_too(mut self) -> Self {
        self.vsphere = OnVsphere::Too;
        self
    }

    /// Only there.
    const fn only_on_vsphere(mut self) -> Self {
        self.on = On::Neither;
        self.vsphere = OnVsphere::Too;
        self
    }

    /// Never there.
    const fn not_on_vsphere(mut self) -> Self {
        self.vsphere = OnVsphere::Never;
        self
    }

    /// On real guests by default, too.
    const fn guests_too(mut self) -> Self {
        self.on = On::Both;
        self
    }

    /// On real guests only.
    const fn guests_only(mut self) -> Self {
        self.on = On::Guests;
        self
    }

    /// It runs this many guests at once.
    const fn guests(mut self, guests: u32) -> Self {
        self.test = self.test.guests(guests);
        self
    }

    /// Only with `--full`.
    const fn on_request(mut self) -> Self {
        self.test = self.test.full();
        self
    }

    /// It may take this long.
    const fn minutes(mut self, minutes: u64) -> Self {
        self.test = self.test.minutes(minutes);
        self
    }
}

/// All of them: what is quick first.
pub fn all() -> Vec<Test> {
    let cases = [
        lifecycle::CASES,
        status::CASES,
        names::CASES,
        interaction::CASES,
        logs::CASES,
        exec::CASES,
        copy::CASES,
        commit::CASES,
        health::CASES,
        restart::CASES,
        events::CASES,
        observe::CASES,
        formats::CASES,
        images::CASES,
        system::CASES,
        listening::CASES,
        parallel::CASES,
        sdk::CASES,
        software::CASES,
        live_fork::CASES,
        spares::CASES,
        killed::CASES,
        vsphere::CASES,
    ]
    .concat();
    let (mut played, mut booted) = (Vec::new(), Vec::new());
    let mut behind = Vec::new();
    for Case {
        test,
        on,
        vsphere,
        esxi,
    } in cases
    {
        if esxi {
            behind.push(test.clone().on_esxi());
        }
        match vsphere {
            OnVsphere::Too => behind.push(test.clone().on_vsphere()),
            OnVsphere::Full => behind.push(test.clone().on_vsphere().full()),
            OnVsphere::Never => {}
        }
        match on {
            On::Fake => {
                played.push(test.clone().on_the_fake());
                booted.push(test.full());
            }
            On::Both => {
                played.push(test.clone().on_the_fake());
                booted.push(test);
            }
            On::Guests => booted.push(test),
            On::Neither => {}
        }
    }
    played.append(&mut booted);
    played.append(&mut behind);
    played
}
