//! JSON writes characters beyond the first 65,536 as two escapes (RFC 8259, section 7), which YAML does not know (pure).

use std::borrow::Cow;

use serde::de::IgnoredAny;

/// The text with each such pair as YAML's one escape of the same character; only if all of it is JSON, where a
/// backslash always begins an escape. Columns behind a pair on its line move by two.
pub(super) fn join(text: &str) -> Cow<'_, str> {
    if !text.contains("\\u") || serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Cow::Borrowed(text);
    }
    let mut joined = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let (before, escape) = rest.split_at(at);
        joined.push_str(before);
        let length = match pair(escape) {
            Some(character) => {
                joined.push_str(&format!("\\U{:08x}", u32::from(character)));
                12
            }
            None => {
                joined.extend(escape.chars().take(2));
                escape.chars().take(2).map(char::len_utf8).sum()
            }
        };
        rest = escape.get(length..).unwrap_or_default();
    }
    joined.push_str(rest);
    Cow::Owned(joined)
}

/// The character of two escapes at the beginning of `text`.
fn pair(text: &str) -> Option<char> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    char::decode_utf16([unit(0)?, unit(6)?]).next()?.ok().filter(|character| u32::from(*character) > 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_joined_in_json_only() {
        assert_eq!(join(r#"{"a": "x\ud83d\uDE00y"}"#), r#"{"a": "x\U0001f600y"}"#);
        assert_eq!(join(r#"{"a": "\\ud83d\\ude00 \u00e9 \n"}"#), r#"{"a": "\\ud83d\\ude00 \u00e9 \n"}"#);
        for other in [r#"a: '\ud83d\ude00'"#, r#"{"a": "\ud83d"}"#, "a: b"] {
            assert_eq!(join(other), other);
        }
    }
}
