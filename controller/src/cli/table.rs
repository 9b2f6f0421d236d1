//! Tables for people: columns as wide as they must be, two spaces apart.

/// Lays rows out below their heads.
pub(super) fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([heads.get(column).map_or(0, |head| head.len())]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        format!("{}\n", padded.collect::<String>().trim_end())
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    std::iter::once(line(heads.to_vec())).chain(rows).collect()
}

/// An age as kubectl writes it: `5s`, `3m`, `7h`, `12d`.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// An age that is not always known.
pub(super) fn known_age(seconds: Option<u64>) -> String {
    seconds.map_or("unknown".to_owned(), age)
}

/// Bytes as people say them.
pub(super) fn bytes(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{}Ki", bytes >> 10),
        mi @ 1..10_240 => format!("{mi}Mi"),
        mi => format!("{}Gi", mi >> 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), String::new()]];
        expect_test::expect![[r#"
            NAME    N
            a       1
            longer
        "#]]
        .assert_eq(&table(&["NAME", "N"], &rows));
        assert_eq!([age(5), age(300), age(9000), age(400_000)], ["5s", "5m", "2h", "4d"]);
        assert_eq!([bytes(4096), bytes(64 << 20), bytes(32 << 30)], ["4Ki", "64Mi", "32Gi"]);
    }
}
