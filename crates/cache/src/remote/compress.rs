/// Redis holds no string beyond this.
const MAX_BYTES: usize = 512 << 20;
/// LZ4 makes no more than this of one byte.
const MAX_RATIO: usize = 255;
const LENGTH: usize = size_of::<u32>();

/// The bytes compressed with LZ4, behind their length; `None` where that doesn't pay.
pub(super) fn compressed(bytes: &[u8], above: usize) -> Option<Vec<u8>> {
    if above == 0 || bytes.len() <= above {
        return None;
    }
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length as usize <= MAX_BYTES)?;
    let mut packed = vec![0; LENGTH + lz4_flex::block::get_maximum_output_size(bytes.len())];
    packed[..LENGTH].copy_from_slice(&length.to_le_bytes());
    let end = LENGTH + lz4_flex::block::compress_into(bytes, &mut packed[LENGTH..]).ok()?;
    packed.truncate(end);
    (end < bytes.len()).then_some(packed)
}

/// What was compressed. `None` for garbage, which allocates no more than 255 times its own size.
pub(super) fn decompressed(packed: &[u8]) -> Option<Vec<u8>> {
    let (length, block) = packed.split_first_chunk::<LENGTH>()?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_BYTES.min(block.len().saturating_mul(MAX_RATIO)) {
        return None;
    }
    let bytes = lz4_flex::block::decompress(block, length).ok()?;
    (bytes.len() == length).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_and_repeats_itself_gets_smaller_and_comes_back() {
        let long = b"all work and no play ".repeat(1_000);
        let packed = compressed(&long, 4096).unwrap();
        assert!(packed.len() < long.len() / 20);
        assert_eq!(decompressed(&packed).unwrap(), long);
        assert!(compressed(&long[..4096], 4096).is_none(), "not above the size");
        assert!(compressed(&long, 0).is_none(), "0 is never");
        let noise: Vec<u8> = (0..10_000).map(|_| rand::random()).collect();
        assert!(compressed(&noise, 4096).is_none(), "it does not pay");
    }

    #[test]
    fn the_emptiest_of_values_keeps_within_the_bound() {
        let zeros = vec![0; 1 << 20];
        assert_eq!(decompressed(&compressed(&zeros, 1).unwrap()).unwrap(), zeros);
    }

    #[test]
    fn garbage_is_refused_and_allocates_little() {
        let packed = compressed(&b"all work and no play ".repeat(1_000), 1).unwrap();
        for end in 0..packed.len() {
            assert!(decompressed(&packed[..end]).is_none());
        }
        assert!(decompressed(&[0xff; 20]).is_none(), "four billion bytes are claimed");
        for _ in 0..10_000 {
            let mut noise = [0; 64].map(|_: u8| rand::random());
            noise[..LENGTH].copy_from_slice(&1_000_u32.to_le_bytes());
            let _ = decompressed(&noise);
        }
    }
}
