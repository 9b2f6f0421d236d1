//! Events, as many as are kept.

use rusqlite::params;

use super::{Result, Store};

/// Events that are kept.
const EVENTS_KEPT: i64 = 100_000;

/// An event as it is stored.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct EventRow {
    pub(in crate::server) seq: u64,
    pub(in crate::server) at_ms: Option<u64>,
    pub(in crate::server) device: Option<String>,
    pub(in crate::server) workload: Option<String>,
    pub(in crate::server) deployment: Option<String>,
    pub(in crate::server) kind: String,
    pub(in crate::server) message: String,
}

/// Which events are wanted: the latest `limit` of those that fit.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct EventFilter {
    pub(in crate::server) after: u64,
    pub(in crate::server) limit: u32,
    pub(in crate::server) device: Option<String>,
    pub(in crate::server) deployment: Option<String>,
}

impl Store {
    pub(in crate::server) fn put_event(&self, event: &EventRow) -> Result<()> {
        self.writer()?
            .prepare_cached(
                "INSERT INTO events (at_ms, device, workload, deployment, kind, message)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![
                event.at_ms,
                event.device,
                event.workload,
                event.deployment,
                event.kind,
                event.message
            ])?;
        let seq = self.writer()?.last_insert_rowid();
        if seq % 1000 == 0 {
            self.writer()?.execute("DELETE FROM events WHERE seq <= ?1", [seq - EVENTS_KEPT])?;
        }
        Ok(())
    }

    /// Events in the order of their numbers.
    pub(in crate::server) fn events(&self, filter: &EventFilter) -> Result<Vec<EventRow>> {
        let mut select = self.connection.prepare_cached(
            "SELECT * FROM (
                SELECT seq, at_ms, device, workload, deployment, kind, message FROM events
                WHERE seq > ?1 AND (?2 IS NULL OR device = ?2) AND (?3 IS NULL OR deployment = ?3)
                ORDER BY seq DESC LIMIT ?4
             ) ORDER BY seq",
        )?;
        let EventFilter { after, limit, device, deployment } = filter;
        let rows = select.query_map(params![after, device, deployment, limit], |row| {
            Ok(EventRow {
                seq: row.get(0)?,
                at_ms: row.get(1)?,
                device: row.get(2)?,
                workload: row.get(3)?,
                deployment: row.get(4)?,
                kind: row.get(5)?,
                message: row.get(6)?,
            })
        })?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }
}
