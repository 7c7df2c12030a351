//! Moments as RFC 3339 writes them, in UTC with nine digits of nanoseconds, as Docker's log files have them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 86_400;
/// 9999-12-31T23:59:59Z, the last second RFC 3339 can write.
const LAST_SECOND: u64 = 253_402_300_799;

/// `2024-02-29T12:00:00.000000001Z`. What lies outside 1970 to 9999 is moved to the nearer end.
pub(super) fn format(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanoseconds) = if since.as_secs() > LAST_SECOND {
        (LAST_SECOND, 999_999_999)
    } else {
        (since.as_secs(), since.subsec_nanos())
    };
    let (year, month, day) = date(seconds / DAY);
    let second = seconds % DAY;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{nanoseconds:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// The reverse of [`format`]; takes fewer digits of a second's fraction too, as Docker writes them.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    let text = text.strip_suffix('Z')?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let bytes = whole.as_bytes();
    if bytes.len() != 19
        || bytes[4] != b'-'
        || bytes[7] != b'-'
        || bytes[10] != b'T'
        || bytes[13] != b':'
        || bytes[16] != b':'
        || !(1..=9).contains(&fraction.len())
    {
        return None;
    }
    let number = |digits: &[u8]| {
        digits.iter().try_fold(0u64, |sum, digit| {
            digit
                .is_ascii_digit()
                .then(|| sum * 10 + u64::from(digit - b'0'))
        })
    };
    let year = number(&bytes[..4])?;
    let (month, day) = (number(&bytes[5..7])?, number(&bytes[8..10])?);
    let (hour, minute) = (number(&bytes[11..13])?, number(&bytes[14..16])?);
    let second = number(&bytes[17..19])?;
    let days = days(year, month, day)?;
    if date(days) != (year, month, day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut nanoseconds = number(fraction.as_bytes())?;
    for _ in fraction.len()..9 {
        nanoseconds *= 10;
    }
    let seconds = days * DAY + hour * 3600 + minute * 60 + second;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds))
}

/// Days from 1970-01-01, by Howard Hinnant's `days_from_civil`: years begin in March, so that the leap day
/// is a year's last.
fn days(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let year = if month > 2 { year } else { year - 1 };
    let of_era = year % 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    Some(year / 400 * 146_097 + day_of_era - 719_468)
}

/// The reverse (`civil_from_days`): year, month, day.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + days / 146_097 * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64, nanoseconds: u32) -> SystemTime {
        UNIX_EPOCH + Duration::new(seconds, nanoseconds)
    }

    #[test]
    fn moments_are_written_as_date_1_writes_them() {
        // The right-hand side is `date -u -d @SECONDS +%FT%TZ`'s.
        for (seconds, nanoseconds, text) in [
            (0, 0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_400, 1, "2000-02-29T00:00:00.000000001Z"),
            (951_868_799, 999_999_999, "2000-02-29T23:59:59.999999999Z"),
            (951_868_800, 0, "2000-03-01T00:00:00.000000000Z"),
            (1_709_210_096, 120_000_000, "2024-02-29T12:34:56.120000000Z"),
            (4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z"),
            (LAST_SECOND, 5, "9999-12-31T23:59:59.000000005Z"),
        ] {
            assert_eq!(format(at(seconds, nanoseconds)), text);
            assert_eq!(parse(text), Some(at(seconds, nanoseconds)));
        }
    }

    #[test]
    fn what_docker_leaves_off_is_read() {
        assert_eq!(parse("1970-01-01T00:00:01Z"), Some(at(1, 0)));
        assert_eq!(parse("1970-01-01T00:00:01.5Z"), Some(at(1, 500_000_000)));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "Z",
            "1970-01-01T00:00:01",
            "1970-01-01 00:00:01Z",
            "1970-13-01T00:00:01Z",
            "1970-02-29T00:00:01Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:60:00Z",
            "1970-01-01T00:00:60Z",
            "1969-12-31T23:59:59Z",
            "1970-01-01T00:00:00.Z",
            "1970-01-01T00:00:00.0123456789Z",
            "1970-01-01T00:00:0éZ",
            "+970-01-01T00:00:00Z",
        ] {
            assert_eq!(parse(text), None, "{text:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn every_moment_comes_back(seconds in 0..=LAST_SECOND, nanoseconds in 0..1_000_000_000u32) {
            let time = at(seconds, nanoseconds);
            prop_assert_eq!(parse(&format(time)), Some(time));
        }
    }
}
