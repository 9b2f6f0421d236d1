//! The audit log: rows are added, and neither changed nor removed, by nobody.

use rusqlite::params;

use super::{Result, Store};

/// Text of one field at most. Rows are kept for ever: one is a few hundred bytes, and 17 KB where a
/// manifest of the largest size that is kept whole replaces another.
const TEXT_BYTES_MAX: usize = 8 * 1024;

/// The triggers hold for everybody who opens the file, as long as nobody drops them: the third is
/// for INSERT OR REPLACE, which removes a row without asking the second.
pub(super) const TABLES: &str = "
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, who TEXT NOT NULL,
        source TEXT, action TEXT NOT NULL, object TEXT NOT NULL, before TEXT, after TEXT,
        outcome TEXT NOT NULL
    );
    CREATE INDEX audit_by_name ON audit (substr(object, instr(object, '/') + 1), seq);
    CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
    CREATE TRIGGER audit_is_not_removed BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
    CREATE TRIGGER audit_is_not_replaced BEFORE INSERT ON audit
        WHEN EXISTS (SELECT 1 FROM audit WHERE seq = NEW.seq)
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
";

/// An entry: who did what to which object, from where, and what became of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::server) struct AuditRow {
    pub(in crate::server) seq: u64,
    pub(in crate::server) at_ms: u64,
    pub(in crate::server) who: String,
    pub(in crate::server) source: Option<String>,
    pub(in crate::server) action: String,
    pub(in crate::server) object: String,
    pub(in crate::server) before: Option<String>,
    pub(in crate::server) after: Option<String>,
    pub(in crate::server) outcome: String,
}

/// Which entries are read.
#[derive(Debug, Default)]
pub(in crate::server) struct AuditFilter {
    /// Only those behind this number.
    pub(in crate::server) after: u64,
    /// At most this many, the latest.
    pub(in crate::server) limit: u32,
    /// Only of objects with this name: `web` of `deployment/web`.
    pub(in crate::server) name: Option<String>,
}

/// An object's name, as the index has it.
const NAME: &str = "substr(object, instr(object, '/') + 1)";

impl Store {
    pub(in crate::server) fn put_audit(&self, row: &AuditRow) -> Result<()> {
        self.writer()?
            .prepare_cached(
                "INSERT INTO audit (at_ms, who, source, action, object, before, after, outcome)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute(params![
                row.at_ms,
                cut(&row.who),
                row.source,
                cut(&row.action),
                cut(&row.object),
                row.before.as_deref().map(cut),
                row.after.as_deref().map(cut),
                cut(&row.outcome),
            ])?;
        Ok(())
    }

    /// The latest entries that a filter lets through, in the order of their numbers.
    pub(in crate::server) fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>> {
        let AuditFilter { after, limit, name } = filter;
        // Without a name, ?3 is bound all the same.
        let named =
            if name.is_some() { NAME.to_owned() + " = ?3" } else { "?3 IS NULL".to_owned() };
        let mut select = self.connection.prepare_cached(&format!(
            "SELECT * FROM (
                SELECT seq, at_ms, who, source, action, object, before, after, outcome FROM audit
                WHERE seq > ?1 AND {named} ORDER BY seq DESC LIMIT ?2
             ) ORDER BY seq",
        ))?;
        let rows = select.query_map(params![after, limit, name], |row| {
            Ok(AuditRow {
                seq: row.get(0)?,
                at_ms: row.get(1)?,
                who: row.get(2)?,
                source: row.get(3)?,
                action: row.get(4)?,
                object: row.get(5)?,
                before: row.get(6)?,
                after: row.get(7)?,
                outcome: row.get(8)?,
            })
        })?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }
}

fn cut(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    format!("{}\n[cut: {} bytes in all]", &text[..end], text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_added_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let row = |n: u64| AuditRow {
            seq: n,
            at_ms: n * 10,
            who: "token 00 ci".to_owned(),
            after: Some("ä".repeat(n as usize * 4000)),
            ..AuditRow::default()
        };
        store.begin().unwrap();
        (1..=3).for_each(|n| store.put_audit(&row(n)).unwrap());
        store.commit().unwrap();
        let audit = |after, limit| store.audit(&AuditFilter { after, limit, name: None }).unwrap();
        let read = audit(0, 2);
        assert_eq!(read[0].seq, 2);
        assert_eq!(audit(0, 9)[0], row(1));
        let after = read[1].after.as_deref().unwrap();
        assert!(after.ends_with("ä\n[cut: 24000 bytes in all]"), "{}", &after[8000..]);

        // Whoever opens the file meets the same.
        let other = rusqlite::Connection::open(folder.path().join("limpet.db")).unwrap();
        for sql in [
            "UPDATE audit SET who = 'nobody'",
            "UPDATE audit SET seq = seq + 1 WHERE seq = 3",
            "DELETE FROM audit",
            "DELETE FROM audit WHERE seq = 3",
            "INSERT OR REPLACE INTO audit VALUES (2, 0, 'x', NULL, 'x', 'x', NULL, NULL, 'x')",
            "REPLACE INTO audit VALUES (3, 0, 'x', NULL, 'x', 'x', NULL, NULL, 'x')",
        ] {
            let why = other.execute_batch(sql).unwrap_err().to_string();
            assert!(why.contains("the audit log is append-only"), "{sql}: {why}");
        }
        assert_eq!(audit(1, 9), read);
    }

    #[test]
    fn the_latest_of_one_object_are_found_among_those_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let put = |object: &str| {
            store
                .put_audit(&AuditRow { object: object.to_owned(), ..AuditRow::default() })
                .unwrap();
        };
        store.begin().unwrap();
        ["deployment/web", "secret/web", "policy"].iter().for_each(|object| put(object));
        (0..50).for_each(|_| put("deployment/webs"));
        store.commit().unwrap();
        let seqs = |name: &str, after, limit| -> Vec<u64> {
            let filter = AuditFilter { after, limit, name: Some(name.to_owned()) };
            store.audit(&filter).unwrap().iter().map(|row| row.seq).collect()
        };
        assert_eq!(seqs("web", 0, 9), [1, 2]);
        assert_eq!([seqs("web", 0, 1), seqs("web", 1, 9)], [[2], [2]]);
        assert_eq!(seqs("policy", 0, 9), [3]);
        assert_eq!(seqs("webs", 0, 2), [52, 53]);
        let plan: String = store
            .connection
            .query_row(
                &format!(
                    "EXPLAIN QUERY PLAN SELECT seq FROM audit WHERE {NAME} = 'web' AND seq > 0"
                ),
                [],
                |row| row.get(3),
            )
            .unwrap();
        assert!(plan.contains("audit_by_name"), "{plan}");
    }
}
