//! When a container that ended is started again: Docker's rules, as functions of what is known.

use std::time::Duration;

use crate::container::Ended;
use crate::spec::RestartPolicy;

/// The pause before the first restart; it doubles with each that follows soon.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Whoever ran so long starts with the first pause again.
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// When the question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occasion {
    /// It has just ended.
    Ended,
    /// The controller starts and finds it off.
    ControllerStarts,
}

/// Whether it is started again. `restarts` is how often it was since somebody started it.
pub(crate) fn again(
    policy: RestartPolicy,
    occasion: Occasion,
    ended: &Ended,
    by_request: bool,
    restarts: u32,
) -> bool {
    match policy {
        RestartPolicy::No => false,
        RestartPolicy::Always => !by_request || occasion == Occasion::ControllerStarts,
        RestartPolicy::UnlessStopped => !by_request,
        RestartPolicy::OnFailure(most) => {
            !by_request && ended.status != 0 && most.is_none_or(|most| restarts < most.get())
        }
    }
}

/// The pause before it is started again, after the one before (`None` for the first).
pub(crate) fn pause(before: Option<Duration>, ran: Duration) -> Duration {
    match before {
        Some(before) if ran < LONG_ENOUGH => (before * 2).min(LONGEST_PAUSE),
        _ => FIRST_PAUSE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;
    use std::time::SystemTime;

    fn ended(status: u8) -> Ended {
        Ended {
            status,
            out_of_memory: false,
            error: String::new(),
            started: SystemTime::UNIX_EPOCH,
            finished: SystemTime::UNIX_EPOCH,
            by_request: false,
        }
    }

    #[test]
    fn each_policy_restarts_when_docker_does() {
        use Occasion::{ControllerStarts, Ended as JustEnded};
        let three = RestartPolicy::OnFailure(NonZeroU32::new(3));
        let cases = [
            (RestartPolicy::No, JustEnded, 1, false, 0, false),
            (RestartPolicy::Always, JustEnded, 0, false, 99, true),
            (RestartPolicy::Always, JustEnded, 0, true, 0, false),
            (RestartPolicy::Always, ControllerStarts, 0, true, 0, true),
            (RestartPolicy::UnlessStopped, JustEnded, 0, false, 0, true),
            (
                RestartPolicy::UnlessStopped,
                ControllerStarts,
                0,
                true,
                0,
                false,
            ),
            (
                RestartPolicy::UnlessStopped,
                ControllerStarts,
                0,
                false,
                0,
                true,
            ),
            (three, JustEnded, 0, false, 0, false),
            (three, JustEnded, 1, false, 2, true),
            (three, JustEnded, 1, false, 3, false),
            (three, JustEnded, 1, true, 0, false),
            (
                RestartPolicy::OnFailure(None),
                JustEnded,
                1,
                false,
                1000,
                true,
            ),
        ];
        for (policy, occasion, status, by_request, restarts, expected) in cases {
            let found = again(policy, occasion, &ended(status), by_request, restarts);
            assert_eq!(
                found, expected,
                "{policy:?} {occasion:?} {status} {by_request} {restarts}"
            );
        }
    }

    #[test]
    fn pauses_double_up_to_a_minute_and_start_anew_after_a_good_run() {
        let short = Duration::from_secs(1);
        let mut pause_now = pause(None, short);
        assert_eq!(pause_now, FIRST_PAUSE);
        for _ in 0..20 {
            let next = pause(Some(pause_now), short);
            assert!(next == pause_now * 2 || next == LONGEST_PAUSE);
            pause_now = next;
        }
        assert_eq!(pause_now, LONGEST_PAUSE);
        assert_eq!(pause(Some(pause_now), LONG_ENOUGH), FIRST_PAUSE);
    }
}
