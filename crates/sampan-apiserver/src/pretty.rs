//! Indented JSON for people, made from the bytes as they are: no tree, no change of the order of keys.

/// Two spaces a level, `": "` after keys, empty containers on one line: what Go's `json.Indent` writes.
pub fn indented(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(json.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut at = 0;
    let newline = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', depth * 2));
    };
    while let Some(&byte) = json.get(at) {
        at += 1;
        if in_string {
            out.push(byte);
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => {
                in_string = true;
                out.push(byte);
            }
            b'{' | b'[' => {
                out.push(byte);
                let close = json[at..].iter().position(|next| !next.is_ascii_whitespace());
                if let Some(skip) = close
                    && matches!(json[at + skip], b'}' | b']')
                {
                    out.push(json[at + skip]);
                    at += skip + 1;
                } else {
                    depth += 1;
                    newline(&mut out, depth);
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                newline(&mut out, depth);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                newline(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            byte if byte.is_ascii_whitespace() => {}
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indents_without_touching_strings_or_order() {
        let json = br#"{"b":{"x":"a\"{,:","y":[]},"a":[1,{"z":{}}]}"#;
        let expected = "{\n  \"b\": {\n    \"x\": \"a\\\"{,:\",\n    \"y\": []\n  },\n  \"a\": [\n    1,\n    {\n      \"z\": {}\n    }\n  ]\n}";
        assert_eq!(String::from_utf8_lossy(&indented(json)), expected);
    }
}
