//! Moments as text, rendered once a second.

/// The last millisecond that four digits of year can tell, 9999-12-31T23:59:59.999Z. Later moments are shown as this one.
const UNIX_MS_MAX: u64 = 253_402_300_799_999;

/// Renders moments, and keeps the last second's rendering of each format: within a second a timestamp costs three digits
/// and a `Date` header nothing.
#[derive(Debug, Clone)]
pub struct Clock {
    timestamp_second: Option<u64>,
    timestamp: [u8; 24],
    date_second: Option<u64>,
    date: [u8; 29],
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

impl Clock {
    /// A clock that has shown nothing yet.
    pub fn new() -> Clock {
        Clock {
            timestamp_second: None,
            timestamp: *b"0000-00-00T00:00:00.000Z",
            date_second: None,
            date: *b"Thu, 00 Jan 0000 00:00:00 GMT",
        }
    }

    /// RFC 3339 in UTC with milliseconds, `2026-01-31T23:59:59.123Z`. Takes milliseconds since the Unix epoch.
    pub fn timestamp(&mut self, unix_ms: u64) -> &[u8; 24] {
        let unix_ms = unix_ms.min(UNIX_MS_MAX);
        let second = unix_ms / 1_000;
        if self.timestamp_second != Some(second) {
            self.timestamp_second = Some(second);
            let moment = Moment::of(second);
            put(&mut self.timestamp[0..4], moment.year);
            put(&mut self.timestamp[5..7], moment.month);
            put(&mut self.timestamp[8..10], moment.day);
            moment.put_time(&mut self.timestamp[11..19]);
        }
        put(&mut self.timestamp[20..23], unix_ms % 1_000);
        &self.timestamp
    }

    /// The IMF-fixdate of a `Date` header, `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7). Takes milliseconds
    /// since the Unix epoch.
    pub fn http_date(&mut self, unix_ms: u64) -> &[u8; 29] {
        const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
        const WEEKDAYS: &[u8; 21] = b"ThuFriSatSunMonTueWed"; // 1970 began on a Thursday.
        let second = unix_ms.min(UNIX_MS_MAX) / 1_000;
        if self.date_second != Some(second) {
            self.date_second = Some(second);
            let moment = Moment::of(second);
            let (weekday, month) = ((second / 86_400 % 7) as usize, moment.month as usize - 1);
            self.date[0..3].copy_from_slice(&WEEKDAYS[3 * weekday..][..3]);
            put(&mut self.date[5..7], moment.day);
            self.date[8..11].copy_from_slice(&MONTHS[3 * month..][..3]);
            put(&mut self.date[12..16], moment.year);
            moment.put_time(&mut self.date[17..25]);
        }
        &self.date
    }
}

/// A second in the proleptic Gregorian calendar, UTC.
struct Moment {
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
    second_of_day: u64,
}

impl Moment {
    /// Howard Hinnant's `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>), for days from 1970 on. It
    /// counts years from March, so that the leap day is a year's last, and eras of 400 years, which are all of one length.
    fn of(unix_second: u64) -> Moment {
        let days = unix_second / 86_400 + 719_468; // since 0000-03-01
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Moment {
            year: days / 146_097 * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            second_of_day: unix_second % 86_400,
        }
    }

    /// Writes `23:59:59`, but for the colons.
    fn put_time(&self, out: &mut [u8]) {
        put(&mut out[0..2], self.second_of_day / 3_600);
        put(&mut out[3..5], self.second_of_day / 60 % 60);
        put(&mut out[6..8], self.second_of_day % 60);
    }
}

/// Fills `out` with the last digits of `number`.
fn put(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let mut clock = Clock::new();
        let mut check = |unix_ms: u64, timestamp: &str, date: &str| {
            assert_eq!(str::from_utf8(clock.timestamp(unix_ms)), Ok(timestamp));
            assert_eq!(str::from_utf8(clock.http_date(unix_ms)), Ok(date));
        };
        check(0, "1970-01-01T00:00:00.000Z", "Thu, 01 Jan 1970 00:00:00 GMT");
        check(784_111_777_000, "1994-11-06T08:49:37.000Z", "Sun, 06 Nov 1994 08:49:37 GMT");
        check(784_111_777_999, "1994-11-06T08:49:37.999Z", "Sun, 06 Nov 1994 08:49:37 GMT");
        check(784_111_778_001, "1994-11-06T08:49:38.001Z", "Sun, 06 Nov 1994 08:49:38 GMT");
        check(784_111_777_005, "1994-11-06T08:49:37.005Z", "Sun, 06 Nov 1994 08:49:37 GMT");
        check(951_782_400_000, "2000-02-29T00:00:00.000Z", "Tue, 29 Feb 2000 00:00:00 GMT");
        check(1_769_903_999_123, "2026-01-31T23:59:59.123Z", "Sat, 31 Jan 2026 23:59:59 GMT");
        check(4_107_542_400_000, "2100-03-01T00:00:00.000Z", "Mon, 01 Mar 2100 00:00:00 GMT");
        check(UNIX_MS_MAX, "9999-12-31T23:59:59.999Z", "Fri, 31 Dec 9999 23:59:59 GMT");
        check(u64::MAX, "9999-12-31T23:59:59.999Z", "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    #[test]
    fn every_day_of_a_thousand_years_follows_the_one_before() {
        let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for number in 0..365_243 {
            let moment = Moment::of(number * 86_400 + 86_399);
            assert_eq!((moment.year, moment.month, moment.day), (year, month, day));
            let length = match month {
                4 | 6 | 9 | 11 => 30,
                2 if leap(year) => 29,
                2 => 28,
                _ => 31,
            };
            (year, month, day) = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                (_, last) if last == length => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }
}
