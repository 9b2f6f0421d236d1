//! Times as people write them.

/// A duration: a number with `s`, `m`, `h` or `d`; in milliseconds.
pub(super) fn duration_ms(text: &str) -> Option<u64> {
    let unit = text.chars().last()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return None,
    };
    let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
    number.checked_mul(seconds)?.checked_mul(1000)
}

/// A moment as RFC 3339 writes it, `2026-11-26T06:00:00Z` or with an offset; seconds may be left
/// out. In milliseconds since 1970.
pub(super) fn moment_ms(text: &str) -> Option<u64> {
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let zone = rest.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = rest.split_at(zone);
    let numbers = |text: &str, separator| -> Option<Vec<i64>> {
        text.split(separator).map(|part| part.parse().ok()).collect()
    };
    let [year, month, day] = numbers(date, '-')?.try_into().ok()?;
    let time = numbers(time, ':')?;
    let (hour, minute, second) = match time.as_slice() {
        [hour, minute] => (*hour, *minute, 0),
        [hour, minute, second] => (*hour, *minute, *second),
        _ => return None,
    };
    let offset = match zone.split_at_checked(1)? {
        ("+", offset) => minutes(offset)?,
        ("-", offset) => -minutes(offset)?,
        (_, "") => 0,
        _ => return None,
    };
    let fits = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second);
    let seconds = days(year, month, day) * 86_400 + (hour * 60 + minute - offset) * 60 + second;
    u64::try_from(seconds).ok().filter(|_| fits).map(|seconds| seconds * 1000)
}

fn minutes(offset: &str) -> Option<i64> {
    let (hours, minutes) = offset.split_once(':')?;
    Some(hours.parse::<i64>().ok()? * 60 + minutes.parse::<i64>().ok()?)
}

/// Days from 1970-01-01 to a day of the Gregorian calendar. Years begin in March, so that a leap
/// day is the last of its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 719_469
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29T12:30Z", Some(951_827_400)),
            ("2026-11-26T06:00:00Z", Some(1_795_672_800)),
            ("2026-11-26T07:00:00+01:00", Some(1_795_672_800)),
            ("2026-11-26 05:30:00-00:30", Some(1_795_672_800)),
            ("2100-03-01T00:00:00Z", Some(4_107_542_400)),
            ("2026-13-26T06:00:00Z", None),
            ("2026-11-26", None),
            ("06:00", None),
            ("", None),
        ] {
            assert_eq!(moment_ms(text), expected.map(|s: u64| s * 1000), "{text}");
        }
        assert_eq!(duration_ms("8h"), Some(28_800_000));
        for text in ["", "8", "h", "-1s", "99999999999999999999d", "8 h"] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }
}
