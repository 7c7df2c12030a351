//! CRC-32C as ext4 uses it: a running value, neither inverted at the start nor at the end.

const TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 {
                value >> 1 ^ 0x82f6_3b78
            } else {
                value >> 1
            };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

/// Goes on from `value` over `bytes`, eight at a time.
pub(super) fn crc32c(mut value: u32, bytes: &[u8]) -> u32 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        let low = value ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        value = TABLES[7][(low & 0xff) as usize]
            ^ TABLES[6][(low >> 8 & 0xff) as usize]
            ^ TABLES[5][(low >> 16 & 0xff) as usize]
            ^ TABLES[4][(low >> 24) as usize]
            ^ TABLES[3][usize::from(chunk[4])]
            ^ TABLES[2][usize::from(chunk[5])]
            ^ TABLES[1][usize::from(chunk[6])]
            ^ TABLES[0][usize::from(chunk[7])];
    }
    for &byte in rest {
        value = TABLES[0][usize::from(value as u8 ^ byte)] ^ value >> 8;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::crc32c;

    #[test]
    fn the_check_value_of_crc_32c_comes_out() {
        assert_eq!(crc32c(!0, b"123456789") ^ !0, 0xe306_9283);
        let (head, tail) = b"123456789".split_at(3);
        assert_eq!(crc32c(crc32c(!0, head), tail) ^ !0, 0xe306_9283);
    }
}
