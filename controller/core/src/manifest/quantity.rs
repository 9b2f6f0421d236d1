//! Amounts with units, as people write them.

use super::quoted;

/// Reads `64Mi`, `1G`, `1048576`: bytes.
///
/// # Errors
/// What to write instead.
pub fn memory_bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{} is no amount of memory: write 64Mi, 1Gi or a number of bytes", quoted(text));
    let (number, unit) = split(text);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)
}

/// Reads `0.5` or `500m`: thousandths of a processor.
pub(super) fn cpu_millis(text: &str) -> Result<u32, String> {
    let wrong = || format!("{} is no number of processors: write 0.5 or 500m", quoted(text));
    if let Some(millis) = text.strip_suffix('m') {
        return millis.parse().map_err(|_| wrong());
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let thousandths: String = fraction.chars().chain("000".chars()).take(3).collect();
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let part: u32 = thousandths.parse().map_err(|_| wrong())?;
    let millis = whole.checked_mul(1000).and_then(|millis| millis.checked_add(part));
    millis.filter(|_| digits).ok_or_else(wrong)
}

/// Reads `500ms`, `10s`, `2m`, `1h`, or a number of seconds: milliseconds.
///
/// # Errors
/// What to write instead.
pub fn duration_ms(text: &str) -> Result<u32, String> {
    let wrong = || format!("{} is no duration: write 500ms, 10s, 2m or 1h", quoted(text));
    let (number, unit) = split(text);
    let factor: u32 = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    number.parse::<u32>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read() {
        assert_eq!(memory_bytes("64Mi"), Ok(64 << 20));
        assert_eq!(memory_bytes("1M"), Ok(1_000_000));
        assert_eq!(cpu_millis("0.5"), Ok(500));
        assert_eq!(cpu_millis("1.2345"), Ok(1234));
        assert_eq!(cpu_millis("250m"), Ok(250));
        assert_eq!(cpu_millis("2"), Ok(2000));
        assert_eq!(duration_ms("10s"), Ok(10_000));
        assert_eq!(duration_ms("500ms"), Ok(500));
        for text in ["", "-1", "1.5Mi", "Mi", "1Zi", "99999999999Gi", "ü"] {
            assert!(memory_bytes(text).is_err(), "{text}");
        }
        for text in ["", "-1", "x", "1.-5", "1.x", "9999999999", "."] {
            assert!(cpu_millis(text).is_err(), "{text}");
        }
        for text in ["", "-1s", "1d", "s", "99999999h"] {
            assert!(duration_ms(text).is_err(), "{text}");
        }
    }
}
