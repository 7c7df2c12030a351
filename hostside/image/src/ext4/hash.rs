//! The half-MD4 hash of names in indexed directories (`fs/ext4/hash.c`, signed characters as on
//! x86).

/// The hash version in the superblock and directory roots: half MD4.
pub(super) const HALF_MD4: u8 = 1;

/// A name's major and minor hash under the filesystem's `seed`.
pub(super) fn half_md4(name: &[u8], seed: &[u32; 4]) -> (u32, u32) {
    let mut state = if seed.iter().any(|&word| word != 0) {
        *seed
    } else {
        [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
    };
    let mut rest = name;
    while !rest.is_empty() {
        transform(&mut state, &words(rest));
        rest = &rest[rest.len().min(32)..];
    }
    let mut major = state[1] & !1;
    if major == 0xffff_fffe {
        // The end-of-directory mark is no name's hash.
        major = 0xffff_fffc;
    }
    (major, state[2])
}

/// Up to 32 characters of `name` as eight words, padded with the remaining length.
fn words(name: &[u8]) -> [u32; 8] {
    let length = name.len() as u32;
    let mut pad = length | length << 8;
    pad |= pad << 16;
    let mut words = [pad; 8];
    let name = &name[..name.len().min(32)];
    for (word, part) in words.iter_mut().zip(name.chunks(4)) {
        for &byte in part {
            *word = (i32::from(byte.cast_signed()) as u32).wrapping_add(*word << 8);
        }
    }
    words
}

fn transform(state: &mut [u32; 4], input: &[u32; 8]) {
    type Mix = fn(u32, u32, u32) -> u32;
    const ROUNDS: [(Mix, u32, [usize; 8], [u32; 4]); 3] = [
        (
            |x, y, z| z ^ (x & (y ^ z)),
            0,
            [0, 1, 2, 3, 4, 5, 6, 7],
            [3, 7, 11, 19],
        ),
        (
            |x, y, z| (x & y).wrapping_add((x ^ y) & z),
            0x5a82_7999,
            [1, 3, 5, 7, 0, 2, 4, 6],
            [3, 5, 9, 13],
        ),
        (
            |x, y, z| x ^ y ^ z,
            0x6ed9_eba1,
            [3, 7, 2, 6, 1, 5, 0, 4],
            [3, 9, 11, 15],
        ),
    ];
    let [mut a, mut b, mut c, mut d] = *state;
    for (mix, constant, order, shifts) in ROUNDS {
        for step in 0..8 {
            let sum = a
                .wrapping_add(mix(b, c, d))
                .wrapping_add(input[order[step]])
                .wrapping_add(constant);
            let new = sum.rotate_left(shifts[step % 4]);
            (a, b, c, d) = (d, new, b, c);
        }
    }
    for (word, value) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(value);
    }
}
