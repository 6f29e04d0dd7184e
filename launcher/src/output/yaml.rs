//! Objects as YAML documents, as `kubectl apply -f -` reads them (pure).

use std::fmt::Write as _;

use serde_json::Value;

/// One document for each object, with `---` between them. Texts stay on one line, quoted where another reader could take
/// them for something else, so that what is applied is byte for byte what was rendered.
///
/// # Errors
/// Never, for JSON; the serializer's signature says otherwise.
pub fn documents(objects: &[Value]) -> Result<String, serde_saphyr::ser::Error> {
    let mut text = String::new();
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            // Writing to a string never fails.
            writeln!(text, "---").ok();
        }
        let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
        text.push_str(&serde_saphyr::to_string_with_options(object, options)?);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::job::source;

    #[test]
    fn what_is_written_is_read_back_as_it_was() {
        let long = "word ".repeat(60);
        let object = json!({
            "plain": "text", "number": 1, "digits": "1", "octal": "0o17", "yes": "yes", "null": "null", "empty": "",
            "true": true, "words": ["a: b", "#c", "- d", "'e'", "\"f\"", "a\nb\n", "tab\t", " lead", "%", "@x", "~"],
            "nested": { "list": [{ "a": { "b": [] } }, {}], "key with: colon": long }, "glob": "*.x", "unit": "1.10",
        });
        let text = documents(&[object.clone(), object.clone()]).unwrap();
        let (first, second) = text.split_once("\n---\n").unwrap();
        for document in [first, second] {
            let (node, faults) = source::read(document);
            assert_eq!(faults, []);
            assert_eq!(node.unwrap().to_json(), object);
        }
    }
}
