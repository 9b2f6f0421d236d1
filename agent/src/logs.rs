//! What containers write: kept in a bounded ring, sent only while somebody looks.

pub mod ring;
pub mod stream;
