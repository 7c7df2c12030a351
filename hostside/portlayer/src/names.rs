//! Names for containers whose user gave none.

use crate::identity::random_bytes;

const FIRST: [&str; 32] = [
    "amber", "bold", "brisk", "calm", "clear", "crisp", "deep", "eager", "early", "fair", "fleet",
    "fond", "fresh", "glad", "grand", "green", "keen", "kind", "light", "lucid", "mild", "neat",
    "proud", "quick", "quiet", "sharp", "sound", "steady", "still", "sunny", "swift", "warm",
];
const SECOND: [&str; 32] = [
    "anchor", "beam", "bollard", "bow", "buoy", "canal", "cape", "cleat", "cove", "crane", "delta",
    "dock", "ferry", "harbour", "hawser", "hull", "jetty", "keel", "lagoon", "lock", "mast",
    "mooring", "oar", "pier", "quay", "rudder", "sail", "shoal", "sound", "strait", "tide",
    "wharf",
];

/// A name that is very likely free: two words and four hexadecimal digits.
///
/// # Errors
/// The kernel gives no random bytes.
pub fn random_name() -> std::io::Result<String> {
    let [first, second, high, low] = random_bytes::<4>()?;
    let word = |words: [&'static str; 32], index: u8| words[usize::from(index) % 32];
    Ok(format!(
        "{}-{}-{high:02x}{low:02x}",
        word(FIRST, first),
        word(SECOND, second)
    ))
}
