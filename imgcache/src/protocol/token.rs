//! Words of a command line and the numbers in them.

use super::{MAX_KEY, Refusal};

/// The words of `line`: what is between spaces. Other white space is part of a word.
pub(super) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> + Clone {
    line.split(|&byte| byte == b' ').filter(|word| !word.is_empty())
}

/// `word` as a key.
///
/// # Errors
/// If it is longer than [`MAX_KEY`] or has a control character.
pub(super) fn key(word: &[u8]) -> Result<&[u8], Refusal> {
    let is_text = !word.iter().any(|&byte| byte < 0x20 || byte == 0x7f);
    if word.len() <= MAX_KEY && is_text { Ok(word) } else { Err(Refusal::BadFormat) }
}

/// A decimal number without a minus sign.
pub(super) fn unsigned(word: &[u8]) -> Option<u64> {
    let digits = word.strip_prefix(b"+").unwrap_or(word);
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, &byte| {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit <= 9)?;
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// The same, where only 32 bits make sense.
pub(super) fn unsigned32(word: &[u8]) -> Option<u32> {
    u32::try_from(unsigned(word)?).ok()
}

/// A decimal number with or without a sign.
pub(super) fn signed(word: &[u8]) -> Option<i64> {
    match word.strip_prefix(b"-") {
        Some(digits) if digits.first() != Some(&b'+') => {
            0_i64.checked_sub_unsigned(unsigned(digits)?)
        }
        Some(_) => None,
        None => i64::try_from(unsigned(word)?).ok(),
    }
}

/// `N` bytes in hexadecimal.
pub(super) fn hex<const N: usize>(word: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = word.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_exact_or_none() {
        assert_eq!(unsigned(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(unsigned(b"18446744073709551616"), None);
        assert_eq!(unsigned(b"+5"), Some(5));
        assert_eq!(signed(b"-9223372036854775808"), Some(i64::MIN));
        for word in [&b""[..], b"+", b"-", b"-5", b"5x", b"0x5", b"5 ", b"++5", b"\t5"] {
            assert_eq!(unsigned(word), None, "{word:?}");
        }
        for word in [&b""[..], b"-", b"--5", b"-+5", b"+-5", b"9223372036854775808"] {
            assert_eq!(signed(word), None, "{word:?}");
        }
        assert_eq!(unsigned32(b"4294967296"), None);
    }

    #[test]
    fn keys_have_a_length_and_no_control_characters() {
        assert!(key(&[b'k'; 250]).is_ok());
        assert!(key(&[b'k'; 251]).is_err());
        assert!(key("schlüssel".as_bytes()).is_ok());
        assert!(key(b"a\tb").is_err());
        assert!(key(b"a\0").is_err());
        assert!(key(b"\x7f").is_err());
    }

    #[test]
    fn hexadecimal_has_exactly_its_length() {
        assert_eq!(hex::<2>(b"0aFf"), Some([0x0a, 0xff]));
        for word in [&b"0aF"[..], b"0aFf0", b"0aFf00", b"0a+f", b"0agg"] {
            assert_eq!(hex::<2>(word), None, "{word:?}");
        }
    }
}
