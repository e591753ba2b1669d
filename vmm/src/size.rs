//! Sizes as people write them: `512M`, `3584M`, `4G`.

/// Reads a size in bytes; units are powers of 1024.
///
/// # Errors
/// What is wrong, for clap to print.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 =
        number.parse().map_err(|_| format!("'{text}' does not start with a number"))?;
    let shift = match unit.trim_end_matches("iB").trim_end_matches('B') {
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return Err(format!("'{text}' has no unit that is known: use K, M, G or T")),
    };
    number
        .checked_mul(1 << shift)
        .filter(|_| number != 0)
        .ok_or_else(|| format!("'{text}' is not a size that anything can have"))
}

/// Writes a number of bytes for people.
pub fn show(bytes: u64) -> String {
    indicatif::HumanBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        assert_eq!(parse("512M"), Ok(512 << 20));
        assert_eq!(parse("4GiB"), Ok(4 << 30));
        assert_eq!(parse("4096k"), Ok(4 << 20));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "M", "12", "12X", "0M", "99999999999999999T", "-1G", "1.5G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
