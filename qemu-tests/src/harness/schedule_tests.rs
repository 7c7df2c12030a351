//! The harness itself, on a stand-in for `vch`.

use super::{Context, Options, Outcome, Test, run, schedule, skip};
use crate::environment::Environment;
use anyhow::Result;
use clap::Parser;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Says what it was asked, or hangs with a child that hangs too.
const VCH: &str = "#!/bin/sh
case \"$*\" in
    *image*) ;;
    *hang*) sleep 1000 & echo hanging; wait ;;
    *leave*) sleep 1000 >/dev/null 2>&1 & ;;
    *early*) echo almost; exit 0 ;;
    *) echo said; echo done ;;
esac
";

fn options(directory: &Path) -> Result<Options> {
    let vch = directory.join("vch");
    std::fs::write(&vch, VCH)?;
    std::fs::set_permissions(&vch, std::fs::Permissions::from_mode(0o755))?;
    for file in ["bzImage", "initramfs.cpio", "tether.iso"] {
        std::fs::write(directory.join(file), "")?;
    }
    std::fs::create_dir_all(directory.join("samples/busybox"))?;
    let path = |name: &str| directory.join(name).display().to_string();
    Ok(Options::try_parse_from([
        "qemu-tests",
        "--vch",
        &path("vch"),
        "--boot-image",
        &path(""),
        "--samples",
        &path("samples"),
        "--out",
        &path("out"),
    ])?)
}

fn outcome(test: Test) -> Outcome {
    let directory = tempfile::tempdir().unwrap();
    let environment = Environment::prepare(&options(directory.path()).unwrap()).unwrap();
    let mut outcomes = schedule::run_all(&[test], &Arc::new(environment), 1);
    outcomes.remove(0).1
}

fn reason(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

fn script(t: &Context) -> Result<()> {
    assert_eq!(t.script("whatever").done()?.finished(), "said\n");
    Ok(())
}

fn early(t: &Context) -> Result<()> {
    t.script("early").done()?.finished();
    Ok(())
}

fn wrong(t: &Context) -> Result<()> {
    t.script("whatever").done()?.stdout("something else");
    Ok(())
}

fn lacks(_: &Context) -> Result<()> {
    skip("there is no moon tonight")
}

fn leave(t: &Context) -> Result<()> {
    t.run(["leave"]).done()?.status(0);
    Ok(())
}

fn hang(t: &Context) -> Result<()> {
    t.run(["hang"]).done()?.status(0);
    Ok(())
}

#[test]
fn a_test_passes_fails_or_skips_with_its_reason() {
    assert!(matches!(
        outcome(Test::new("g", "script", script)),
        Outcome::Passed
    ));
    let wrong = reason(outcome(Test::new("g", "wrong", wrong)));
    assert!(
        wrong.contains("standard output is not \"something else\""),
        "{wrong}"
    );
    match outcome(Test::new("g", "lacks", lacks)) {
        Outcome::Skipped(why) => assert_eq!(why, "there is no moon tonight"),
        other => panic!("{other:?}"),
    }
    match outcome(Test::new("g", "script", script).full()) {
        Outcome::Skipped(why) => assert!(why.contains("--full")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_that_does_not_say_done_fails() {
    let early = reason(outcome(Test::new("g", "early", early)));
    assert!(early.contains("never said that it was done"), "{early}");
}

#[test]
fn what_is_left_running_is_killed_and_fails_the_test() {
    let left = reason(outcome(Test::new("g", "leave", leave)));
    assert!(
        left.contains("left running") && left.contains("sleep 1000"),
        "{left}"
    );
}

#[test]
fn a_test_that_hangs_is_ended_with_all_it_started() {
    let mut test = Test::new("g", "hang", hang);
    test.within = Duration::from_secs(2);
    let hung = reason(outcome(test));
    assert!(
        hung.contains("not over after 2 s") && hung.contains("sleep 1000"),
        "{hung}"
    );
}

#[test]
fn no_two_tests_have_the_same_name_and_an_unknown_one_is_an_error() {
    let tests = [Test::new("g", "same", lacks), Test::new("g", "same", lacks)];
    let directory = tempfile::tempdir().unwrap();
    let mut one = options(directory.path()).unwrap();
    assert!(run(options(directory.path()).unwrap(), &tests).is_err());
    one.filter = vec!["other".to_owned()];
    assert!(run(one, &tests[..1]).is_err());
    assert!(
        run(
            options(directory.path()).unwrap(),
            &crate::tests::all()[..0]
        )
        .is_err()
    );
}
