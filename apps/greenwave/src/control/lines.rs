//! One JSON value a line.

use std::io;

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};

/// No line is longer: a thousand instances with their statuses are some 300 kB.
const MAX_LINE_BYTES: usize = 8 << 20;

/// Reads values.
pub(crate) struct Reader<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    pub(crate) fn new(reader: R) -> Reader<R> {
        Reader { reader: BufReader::new(reader), line: Vec::new() }
    }

    /// The next value; `None` at the end. Cancel safe: what was read of a line is kept.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        loop {
            let available = self.reader.fill_buf().await?;
            if available.is_empty() {
                return if self.line.is_empty() {
                    Ok(None)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(available.len(), |end| end + 1);
            self.line.extend_from_slice(&available[..taken]);
            self.reader.consume(taken);
            if self.line.len() > MAX_LINE_BYTES {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            if end.is_some() {
                let value = serde_json::from_slice(&self.line);
                self.line.clear();
                return Ok(Some(value?));
            }
        }
    }
}

/// Writes a value. Not cancel safe: half a line may have been written.
pub(crate) async fn send(writer: &mut (impl AsyncWrite + Unpin), value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn lines_are_values_and_a_broken_one_is_an_error() {
        let mut reader = Reader::new((&b"1\n\"a\nb\n"[..]).chain(&b"2\n3"[..]));
        assert_eq!(reader.next::<u32>().await.unwrap(), Some(1));
        assert_eq!(reader.next::<u32>().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(reader.next::<u32>().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(reader.next::<u32>().await.unwrap(), Some(2));
        assert_eq!(reader.next::<u32>().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let mut reader = Reader::new(tokio::io::repeat(b'1'));
        assert_eq!(reader.next::<u32>().await.unwrap_err().to_string(), "a line is too long");
    }
}
