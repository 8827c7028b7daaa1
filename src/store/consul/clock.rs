//! What time Consul has: the header `Date` of its answers (RFC 9110, section 5.6.7).

const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, the one form that servers may send.
pub fn seconds(date: &str) -> Option<i64> {
    let words: Vec<&str> = date.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let (day, year): (i64, i64) = (day.parse().ok()?, year.parse().ok()?);
    let month = MONTHS.find(month).filter(|at| month.len() == 3 && at % 3 == 0)? as i64 / 3;
    let mut of_day = 0;
    for part in time.split(':') {
        of_day = of_day * 60 + part.parse::<i64>().ok()?;
    }
    Some(days(year, month, day)? * 86400 + of_day)
}

/// Days since 1970 by the Gregorian calendar, counted from March on: what is added in a leap year comes last.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    (1970..10_000).contains(&year).then_some(())?;
    let (year, month) = if month < 2 { (year - 1, month + 10) } else { (year, month - 2) };
    Some(365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 719_469)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_seconds_and_nonsense_is_none() {
        assert_eq!(seconds("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(seconds("Thu, 29 Feb 2024 23:59:59 GMT"), Some(1_709_251_199));
        for nonsense in ["", "Sun, 06 Nov 1994", "Sun, 06 anF 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 CET", "a b c d e GMT"] {
            assert_eq!(seconds(nonsense), None, "{nonsense}");
        }
    }
}
