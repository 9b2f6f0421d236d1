//! Which of this machine's package sources are for images: those of its own Debian release, whatever
//! mirror they are at. Both forms of apt's files are read; deb822 is written (sources.list(5)).

use std::fmt::Write;

/// The components that boards need: the second has what some hardware must be given at start.
const COMPONENTS: &str = "main non-free-firmware";

/// One source, with only what is passed on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Source {
    uris: String,
    suites: Vec<String>,
    /// As many lines as a key has that is written out.
    signed_by: String,
}

/// The sources of a release in files of apt, as one file in deb822. Empty where there are none.
pub(super) fn of_release(files: &[(String, String)], codename: &str) -> String {
    let mut out = String::new();
    for (name, text) in files {
        let sources = if name.ends_with(".sources") { stanzas(text) } else { lines(text) };
        for mut source in sources {
            source.suites.retain(|suite| belongs(suite, codename));
            if !source.suites.is_empty() {
                let Source { uris, suites, signed_by } = source;
                let suites = suites.join(" ");
                let _ = writeln!(out, "Types: deb\nURIs: {uris}\nSuites: {suites}");
                let _ = writeln!(out, "Components: {COMPONENTS}");
                if !signed_by.is_empty() {
                    let _ = writeln!(out, "Signed-By: {signed_by}");
                }
                out.push('\n');
            }
        }
    }
    out
}

fn belongs(suite: &str, codename: &str) -> bool {
    let rest = suite.strip_prefix(codename);
    rest.is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
}

/// `*.sources`
fn stanzas(text: &str) -> Vec<Source> {
    let clean: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    clean.join("\n").split("\n\n").filter_map(stanza).collect()
}

fn stanza(text: &str) -> Option<Source> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match line.split_once(':') {
            Some((key, value)) if !line.starts_with([' ', '\t']) => {
                fields.push((key.trim().to_ascii_lowercase(), value.trim().to_owned()));
            }
            _ => {
                if let Some((_, value)) = fields.last_mut() {
                    *value += "\n";
                    *value += line;
                }
            }
        }
    }
    let get = |key: &str| fields.iter().find(|field| field.0 == key).map(|field| field.1.as_str());
    let has = |key: &str, word: &str| {
        get(key).is_some_and(|value| value.split_whitespace().any(|known| known == word))
    };
    let enabled = get("enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"));
    (enabled && has("types", "deb") && has("components", "main")).then(|| Source {
        uris: get("uris").unwrap_or_default().to_owned(),
        suites: get("suites").unwrap_or_default().split_whitespace().map(str::to_owned).collect(),
        signed_by: get("signed-by").unwrap_or_default().to_owned(),
    })
}

/// `sources.list` and `*.list`: `deb [signed-by=FILE] URI SUITE COMPONENT...`
fn lines(text: &str) -> Vec<Source> {
    text.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let signed_by = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
    words.any(|component| component == "main").then(|| Source {
        uris: uri.to_owned(),
        suites: vec![suite.to_owned()],
        signed_by: signed_by.unwrap_or_default().replace(',', " "),
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn the_release_is_kept_and_the_rest_is_not() {
        let files = [
            (
                "debian.sources",
                "Types: deb deb-src\n# a comment\nURIs: http://a.example/debian\nSuites: bookworm \
                 bookworm-updates\n bookworm-backports\nComponents: main contrib\nSigned-By: /k.gpg\n\
                 \nTypes: deb\nURIs: http://b.example\nSuites: nodistro\nComponents: main\n\n\
                 Enabled: no\nTypes: deb\nURIs: http://c.example\nSuites: bookworm\nComponents: \
                 main\n",
            ),
            (
                "sources.list",
                "# deb http://d.example bookworm main\n\
                 deb [arch=amd64 signed-by=/k2.gpg] http://e.example/s bookworm-security main\n\
                 deb-src http://e.example/s bookworm main\n\
                 deb http://f.example cloud-bookworm main\n",
            ),
        ];
        let files = files.map(|(name, text)| (name.to_owned(), text.to_owned()));
        expect![[r"
            Types: deb
            URIs: http://a.example/debian
            Suites: bookworm bookworm-updates
            Components: main non-free-firmware
            Signed-By: /k.gpg

            Types: deb
            URIs: http://e.example/s
            Suites: bookworm-security
            Components: main non-free-firmware
            Signed-By: /k2.gpg

        "]]
        .assert_eq(&of_release(&files, "bookworm"));
        assert_eq!(of_release(&files, "trixie"), "");
    }
}
