//! The one date an image carries, in the forms its file systems want.

/// A moment in UTC, to the second, within the years that both ISO 9660's
/// directory records and FAT can express after clamping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: u16,
    month: u8,
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

/// Last second that an ISO 9660 directory record (years 1900 + u8) and FAT
/// (years 1980 + 7 bits) both hold: 2107-12-31 23:59:59.
const LAST: u64 = 4_354_819_199;

impl Date {
    /// The start of 1970, used when nobody says otherwise.
    pub const EPOCH: Date = Date {
        year: 1970,
        month: 1,
        day: 1,
        hour: 0,
        minute: 0,
        second: 0,
    };

    /// `seconds` after the start of 1970, as in `SOURCE_DATE_EPOCH`
    /// (reproducible-builds.org). Later than 2107 becomes the end of 2107.
    pub fn from_epoch(seconds: u64) -> Self {
        let seconds = seconds.min(LAST);
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Gregorian calendar with the year starting in March: the day of the
        // year is then linear in the month, and the leap day comes last.
        let shifted = days + 719_468;
        let era = shifted / 146_097;
        let day_of_era = shifted % 146_097;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        Date {
            year: (era * 400 + year_of_era + u64::from(month <= 2)) as u16,
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            hour: (rest / 3_600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// ECMA-119 9.1.5, as in directory records.
    pub(crate) fn iso_record(self) -> [u8; 7] {
        let year = (self.year - 1900) as u8;
        let utc_offset = 0;
        [
            year,
            self.month,
            self.day,
            self.hour,
            self.minute,
            self.second,
            utc_offset,
        ]
    }

    /// ECMA-119 8.4.26.1, as in volume descriptors: sixteen digits, UTC offset.
    pub(crate) fn iso_descriptor(self) -> [u8; 17] {
        let digits = format!(
            "{:04}{:02}{:02}{:02}{:02}{:02}00",
            self.year, self.month, self.day, self.hour, self.minute, self.second
        );
        let mut field = [0; 17];
        field[..16].copy_from_slice(digits.as_bytes());
        field
    }

    /// Time and date words of a FAT directory entry; before 1980 becomes 1980.
    pub(crate) fn fat(self) -> (u16, u16) {
        if self.year < 1980 {
            return (0, 1 << 5 | 1);
        }
        let time =
            u16::from(self.hour) << 11 | u16::from(self.minute) << 5 | (u16::from(self.second) / 2);
        let date = (self.year - 1980) << 9 | u16::from(self.month) << 5 | u16::from(self.day);
        (time, date)
    }
}

#[cfg(test)]
mod tests {
    use super::Date;

    #[test]
    fn seconds_become_the_calendar_date_that_date_1_gives() {
        let cases = [
            (0, "1970010100000000"),
            (951_782_399, "2000022823595900"),
            (951_868_799, "2000022923595900"),
            (1_709_210_096, "2024022912345600"),
            (1_735_689_599, "2024123123595900"),
            (4_107_542_400, "2100030100000000"),
            (4_354_819_199, "2107123123595900"),
            (u64::MAX, "2107123123595900"),
        ];
        for (seconds, digits) in cases {
            let field = Date::from_epoch(seconds).iso_descriptor();
            assert_eq!(&field[..16], digits.as_bytes(), "{seconds}");
            assert_eq!(field[16], 0);
        }
        assert_eq!(Date::from_epoch(0), Date::EPOCH);
    }

    #[test]
    fn each_file_system_gets_its_own_form() {
        let date = Date::from_epoch(1_709_210_096);
        assert_eq!(date.iso_record(), [124, 2, 29, 12, 34, 56, 0]);
        assert_eq!(date.fat(), (12 << 11 | 34 << 5 | 28, 44 << 9 | 2 << 5 | 29));
        assert_eq!(Date::EPOCH.fat(), (0, 0x21), "FAT starts in 1980");
    }
}
