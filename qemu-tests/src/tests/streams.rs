//! Many bytes, each once and in its place, over every carrier.

use super::boot::need_vsock;
use crate::harness::{Context, Test};
use crate::machine::{Machine, Wanted, block_on, main_process, with_input};
use crate::random::Random;
use anyhow::Result;
use hypervisor::ChannelKind;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use tether_wire::message::ExitStatus;

const MB: usize = 1_000_000;
/// One byte in so many is flipped or dropped where the line lies.
const LIES: u64 = 4_000;

pub const TESTS: &[Test] = &[
    Test::new("streams", "100 MB in and out are unharmed over virtio", virtio).minutes(8),
    Test::new("streams", "100 MB in and out are unharmed over vsock", vsock).minutes(8),
    Test::new("streams", "1 MB in and out is unharmed over a serial line (100 MB with --full)", serial).minutes(8),
    Test::new("streams", "1 MB in and out is unharmed over a serial line that flips and drops bytes (100 MB with --full)", lying_serial).minutes(8),
    Test::new("streams", "100 MB in and out are unharmed over a serial line", serial_full).minutes(60).full(),
    Test::new("streams", "100 MB in and out are unharmed over a serial line that flips and drops bytes", lying_serial_full).minutes(120).full(),
];

/// Takes its input, says what it got on standard error, and gives it back.
const THERE_AND_BACK: &str = "cat >/data; sha256sum </data >&2; cat /data";

fn sha256(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// By `vch run`, as a user would.
fn there_and_back(t: &Context, channel: &str, size: usize) -> Result<()> {
    let bytes = Random::from_clock().bytes(size);
    let done = t
        .run(["sh", "-c", THERE_AND_BACK])
        .flags(["-i", "--channel", channel])
        .stdin(bytes.clone())
        .done()?;
    done.stderr(&format!("{}  -\n", sha256(&bytes))).status(0);
    assert_eq!(
        sha256(&done.out),
        sha256(&bytes),
        "{} bytes came back",
        done.out.len()
    );
    Ok(())
}

fn virtio(t: &Context) -> Result<()> {
    there_and_back(t, "virtio", 100 * MB)
}

fn vsock(t: &Context) -> Result<()> {
    need_vsock()?;
    there_and_back(t, "vsock", 100 * MB)
}

fn serial(t: &Context) -> Result<()> {
    there_and_back(t, "serial", MB)
}

fn serial_full(t: &Context) -> Result<()> {
    there_and_back(t, "serial", 100 * MB)
}

/// Over a line that lies.
fn through_lies(t: &Context, size: usize) -> Result<()> {
    let mut random = Random::from_clock();
    let seed = random.seed();
    let bytes = random.bytes(size);
    block_on(t, async {
        let machine = Machine::set_up(
            t,
            Wanted {
                channel: ChannelKind::Serial,
                lies: Some(LIES),
                ..Wanted::default()
            },
        )
        .await?;
        let spec = with_input(main_process(&["sh", "-c", THERE_AND_BACK]));
        let finished = machine.run(0, spec, &bytes).await?;
        let lies = machine.lies();
        assert_eq!(
            String::from_utf8_lossy(&finished.stderr),
            format!("{}  -\n", sha256(&bytes)),
            "{lies} lies from seed {seed}"
        );
        assert_eq!(
            sha256(&finished.stdout),
            sha256(&bytes),
            "{lies} lies from seed {seed}"
        );
        assert_eq!(finished.exit.status, ExitStatus::Code(0));
        // Not so many that it proves nothing, not so few that it does not either.
        assert!(lies > 2 * size as u64 / LIES / 2, "only {lies} lies");
        machine.end().await
    })
}

fn lying_serial(t: &Context) -> Result<()> {
    through_lies(t, MB)
}

fn lying_serial_full(t: &Context) -> Result<()> {
    through_lies(t, 100 * MB)
}
