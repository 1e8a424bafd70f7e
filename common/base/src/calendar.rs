//! Hours, days, weeks and months of a time, in UTC.

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// A stretch of time of which one point is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Period {
    /// An hour.
    Hour,
    /// A day.
    Day,
    /// A week, from Monday.
    Week,
    /// A month.
    Month,
}

impl Period {
    /// Which one a time is in, nanoseconds since 1970: consecutive numbers.
    #[must_use]
    pub fn of(self, time: u64) -> u64 {
        let seconds = time / SECOND;
        match self {
            Period::Hour => seconds / 3600,
            Period::Day => seconds / DAY,
            // The first of January 1970 was a Thursday.
            Period::Week => (seconds / DAY + 3) / 7,
            Period::Month => month_of(seconds / DAY),
        }
    }
}

/// Days from 1970 to the first of January.
const fn year_begins(year: u64) -> u64 {
    const fn leaps(through: u64) -> u64 {
        through / 4 - through / 100 + through / 400
    }
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Months since January 1970 of a day since 1970, in UTC.
fn month_of(day: u64) -> u64 {
    let mut year = 1970 + day / 366;
    while year_begins(year + 1) <= day {
        year += 1;
    }
    let (mut rest, leap) = (day - year_begins(year), year_begins(year + 1) - year_begins(year) == 366);
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    for length in lengths {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year - 1970) * 12 + month
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Monday, the 2nd of October 2023.
    const MONDAY: u64 = 1_696_204_800 * SECOND;

    #[test]
    fn periods_are_those_of_the_calendar() {
        for (days, month) in [
            (0, 0),
            (30, 0),
            (31, 1),
            (58, 1),
            (59, 2),
            (364, 11),
            (365, 12),
            // 28 and 29 February and 1 March of 2000 and 2024, 28 February and 1 March of 2100.
            (11_015, 361),
            (11_016, 361),
            (11_017, 362),
            (19_781, 649),
            (19_782, 649),
            (19_783, 650),
            (47_540, 1561),
            (47_541, 1562),
        ] {
            assert_eq!(month_of(days), month, "day {days}");
        }
        let day = |n: u64| MONDAY + n * DAY * SECOND;
        let weeks: Vec<u64> = (0..8).map(|n| Period::Week.of(day(n)) - Period::Week.of(MONDAY)).collect();
        assert_eq!(weeks, [0, 0, 0, 0, 0, 0, 0, 1]);
        // Nothing that a broken clock says takes long or overflows.
        for period in [Period::Hour, Period::Day, Period::Week, Period::Month] {
            assert!(period.of(u64::MAX) > 0);
        }
    }
}
