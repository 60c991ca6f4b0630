//! What is kept, as bytes, for a successor on the same machine.
//!
//! `MAGIC`, the time of writing, then records: length, checksum, a head in postcard's form, the body. Postcard decodes
//! fields of another order wrong and silently, so each change of [`Record`] is a new `MAGIC`.

use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::entry::{Entry, Head, tags};
use super::key::Key;
use super::policy::Freshness;
use super::store::Store;
use super::vary::Vary;
use crate::telemetry::PROXY_TARGET;

const MAGIC: &[u8; 8] = b"GWEDGEC1";
// More than any head takes that came over a connection of ours.
const MAX_HEAD: u64 = 1024 * 1024;

type Fields<'a> = Vec<(&'a str, &'a [u8])>;

#[derive(Serialize, Deserialize)]
struct Record<'a> {
    secure: bool,
    host: &'a str,
    target: &'a str,
    status: u16,
    #[serde(borrow)]
    headers: Fields<'a>,
    hidden: Fields<'a>,
    vary: Vec<(&'a str, Option<&'a [u8]>)>,
    age: u32,
    lifetime: u32,
    always_validate: bool,
    may_be_stale: bool,
    stale_while_revalidate: u32,
    stale_if_error: u32,
}

fn fields(headers: &HeaderMap) -> Fields<'_> {
    headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
}

fn header_map(fields: &[(&str, &[u8])]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::try_with_capacity(fields.len()).ok()?;
    for (name, value) in fields {
        headers.try_append(HeaderName::try_from(*name).ok()?, HeaderValue::from_bytes(value).ok()?).ok()?;
    }
    Some(headers)
}

fn wall_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// FNV-1a: against damage, not against malice.
fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Writes all entries.
pub(super) fn write(store: &Store, writer: impl Write) -> io::Result<u64> {
    let mut writer = BufWriter::new(writer);
    writer.write_all(MAGIC)?;
    writer.write_all(&wall_seconds().to_le_bytes())?;
    let mut written = 0;
    for (key, entry) in store.entries() {
        let mut record = encode(&key, &entry)?;
        record.extend_from_slice(&entry.body);
        writer.write_all(&(record.len() as u64).to_le_bytes())?;
        writer.write_all(&checksum(&record).to_le_bytes())?;
        writer.write_all(&record)?;
        written += 1;
    }
    writer.flush()?;
    Ok(written)
}

fn encode(key: &Key, entry: &Entry) -> io::Result<Vec<u8>> {
    let (head, freshness) = (&entry.head, &entry.head.freshness);
    let record = Record {
        secure: key.secure,
        host: &key.host,
        target: &key.target,
        status: head.status.as_u16(),
        headers: fields(&head.headers),
        hidden: fields(&head.hidden),
        vary: head.vary.fields().map(|(name, value)| (name.as_str(), value)).collect(),
        age: freshness.age(Instant::now()),
        lifetime: freshness.lifetime,
        always_validate: freshness.always_validate,
        may_be_stale: freshness.may_be_stale,
        stale_while_revalidate: freshness.stale_while_revalidate,
        stale_if_error: freshness.stale_if_error,
    };
    postcard::to_stdvec(&record).map_err(io::Error::other)
}

/// Keeps the entries that were written, as far as they can be read.
pub(super) fn read(store: &Store, reader: impl Read) -> u64 {
    let mut kept = 0;
    if let Err(error) = read_all(store, &mut BufReader::new(reader), &mut kept) {
        tracing::warn!(target: PROXY_TARGET, %error, kept, "the rest of an earlier cache cannot be read");
    }
    kept
}

fn read_all(store: &Store, reader: &mut impl Read, kept: &mut u64) -> io::Result<()> {
    let mut magic = [0; MAGIC.len()];
    reader.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Err(io::Error::new(ErrorKind::InvalidData, "not an exported cache of this version"));
    }
    let written = number(reader)?.ok_or(ErrorKind::UnexpectedEof)?;
    let away = u32::try_from(wall_seconds().saturating_sub(written)).unwrap_or(u32::MAX);
    let longest = store.config.max_object_bytes.saturating_add(MAX_HEAD);
    // No more than the cache has room for, whatever the reader brings.
    let mut left = store.config.max_bytes;
    while let Some(length) = number(reader)? {
        let sum = number(reader)?.ok_or(ErrorKind::UnexpectedEof)?;
        if length > longest.min(left) {
            return Err(io::Error::new(ErrorKind::InvalidData, "a record is too long"));
        }
        left -= length;
        let mut record = Vec::new();
        reader.take(length).read_to_end(&mut record)?;
        if record.len() as u64 != length || checksum(&record) != sum {
            return Err(io::Error::new(ErrorKind::InvalidData, "a record is damaged"));
        }
        let (key, entry) = decode(store, &record, away)
            .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "a record makes no sense"))?;
        let key = Arc::new(key);
        if store.keep(&key, store.epoch(&key), entry) {
            *kept += 1;
        }
    }
    Ok(())
}

/// The next number; none at the end.
fn number(reader: &mut impl Read) -> io::Result<Option<u64>> {
    let mut bytes = [0; 8];
    match reader.read(&mut bytes[..1])? {
        0 => Ok(None),
        _ => {
            reader.read_exact(&mut bytes[1..])?;
            Ok(Some(u64::from_le_bytes(bytes)))
        }
    }
}

fn decode(store: &Store, bytes: &[u8], away: u32) -> Option<(Key, Entry)> {
    let (record, body) = postcard::take_from_bytes::<Record<'_>>(bytes).ok()?;
    let hidden = header_map(&record.hidden)?;
    let vary: Option<Vec<_>> = record
        .vary
        .iter()
        .map(|(name, value)| Some((HeaderName::try_from(*name).ok()?, value.map(Into::into))))
        .collect();
    let head = Head {
        status: StatusCode::from_u16(record.status).ok()?,
        headers: header_map(&record.headers)?,
        tags: tags(&store.config, &hidden),
        hidden,
        vary: Vary::from_fields(vary?),
        freshness: Freshness {
            came: Instant::now(),
            initial_age: record.age.saturating_add(away),
            lifetime: record.lifetime,
            always_validate: record.always_validate,
            may_be_stale: record.may_be_stale,
            stale_while_revalidate: record.stale_while_revalidate,
            stale_if_error: record.stale_if_error,
        },
        told: ArcSwapOption::empty(),
    };
    let key = Key { secure: record.secure, host: record.host.into(), target: record.target.into() };
    Some((key, Entry { head: Arc::new(head), body: Bytes::copy_from_slice(body) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_fields_than_a_map_holds_are_refused() {
        let names: Vec<String> = (0..40_000).map(|number| format!("x-{number}")).collect();
        let fields: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"1"[..])).collect();
        assert!(header_map(&fields[..2]).is_some());
        assert!(header_map(&fields).is_none());
        assert!(header_map(&fields[..30_000]).is_none());
    }
}
